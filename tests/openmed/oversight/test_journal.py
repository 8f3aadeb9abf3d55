"""A journal loses and doubles nothing, whoever writes and is killed, and shows what was done to it."""

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from openmed.errors import IntegrityError, ResourceError
from openmed.oversight import journal as module
from openmed.oversight.journal import Journal
from tests.conftest import ROOT


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "answers")


@pytest.fixture
def clock(monkeypatch):
    """Sets the day that a journal believes it is."""

    def set_to(day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.fromisoformat(f"{day}T12:00:00+00:00")

        monkeypatch.setattr(module, "datetime", Clock)

    return set_to


def numbers(journal):
    return [entry["number"] for entry in journal.entries() if "number" in entry]


def write(journal, *found):
    for number in found:
        journal.append([{"event": "answered", "number": number}])


def test_each_line_holds_the_hash_of_the_one_before_it_over_days_too(journal, clock):
    clock("2026-01-31")
    journal.append([{"number": 0}, {"number": 1}])
    clock("2026-02-01")
    write(journal, 2)
    files = sorted((journal.folder).glob("*.jsonl"))
    assert [file.name for file in files] == ["2026-01-31.jsonl", "2026-02-01.jsonl"]
    lines = [line for file in files for line in file.read_bytes().splitlines()]
    found = [json.loads(line) for line in lines]
    digests = [hashlib.sha256(line).hexdigest() for line in lines]
    assert [entry["previous"] for entry in found] == ["0" * 64, *digests[:-1]]
    assert [entry["at"] for entry in found] == ["2026-01-31T12:00:00Z"] * 2 + ["2026-02-01T12:00:00Z"]
    assert journal.head() == digests[-1] and numbers(journal) == [0, 1, 2]


def test_a_clock_that_was_put_back_puts_no_line_before_another(journal, clock):
    clock("2026-02-01")
    write(journal, 0)
    clock("2026-01-31")
    write(journal, 1)
    assert numbers(journal) == [0, 1] and len(journal.days()) == 1


def test_only_its_owner_can_read_it_whatever_the_umask_and_the_folder_say(tmp_path):
    (tmp_path / "answers").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        write(Journal(tmp_path / "answers"), 0)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "answers").rglob("*")]
    assert modes == [0o600, 0o600] and stat.S_IMODE((tmp_path / "answers").stat().st_mode) == 0o700


def test_eight_writers_at_once_four_of_them_killed_lose_and_double_nothing(journal):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("writer.py")), str(journal.folder)]
    writers = {
        name: subprocess.Popen(
            [*command, name, "30" if name in "aceg" else "1000000"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in "abcdefgh"
    }
    told = {name: [writers[name].stdout.readline().strip()] for name in "bdfh"}
    for name, lines in told.items():
        writers[name].send_signal(signal.SIGKILL)
        lines += writers[name].stdout.read().split()
        writers[name].wait()
    told |= {name: writers[name].communicate(timeout=60)[0].split() for name in "aceg"}
    kept = {name: [] for name in told}
    for entry in journal.entries():
        kept[entry["film"]].append(str(entry["number"]))
    for name, numbered in told.items():
        # Who was killed may have kept one answer that he could not give any more, never the other way round.
        assert kept[name] == [str(number) for number in range(len(kept[name]))]
        assert len(kept[name]) - len(numbered) in ((0,) if name in "aceg" else (0, 1)), name
    assert [len(told[name]) for name in "aceg"] == [30] * 4


def test_threads_write_one_after_another(journal):
    threads = [threading.Thread(target=write, args=(journal, *range(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(journal)) == sorted([*range(20)] * 4)


def _last(journal):
    return journal.days()[-1]


@pytest.mark.parametrize("kept", [0, 1, 20, -2, -1])
def test_a_writer_killed_in_a_line_harms_no_other_line(journal, kept):
    write(journal, 0)
    head = (journal.folder / "head").read_bytes()
    before = _last(journal).read_bytes()
    write(journal, 1)
    line = _last(journal).read_bytes()[len(before) :]
    # He died before the head: of his line there is all, a part or nothing, with its end or without.
    cut = line if kept == -1 else line[: kept if kept >= 0 else len(line) - 1]
    _last(journal).write_bytes(before + cut)
    (journal.folder / "head").write_bytes(head)
    assert numbers(journal) == ([0, 1] if kept < 0 else [0])
    write(journal, 2)
    write(journal, 3)
    assert numbers(journal) == ([0, 1, 2, 3] if kept < 0 else [0, 2, 3])


def test_a_writer_killed_before_the_head_on_a_new_day_is_caught_up_with(journal, clock):
    clock("2026-01-31")
    write(journal, 0)
    head = (journal.folder / "head").read_bytes()
    clock("2026-02-01")
    write(journal, 1)
    (journal.folder / "head").write_bytes(head)
    clock("2026-02-03")
    write(journal, 2)
    assert numbers(journal) == [0, 1, 2] and len(journal.days()) == 3


def _edit(lines, number):
    lines[number] = lines[number].replace(b"answered", b"answerfd")


ATTACKS = {
    "first line changed": lambda lines: _edit(lines, 0),
    "middle line changed": lambda lines: _edit(lines, 2),
    "last line changed": lambda lines: _edit(lines, -1),
    "line made unreadable": lambda lines: lines.__setitem__(2, b"{"),
    "last line made unreadable": lambda lines: lines.__setitem__(-1, b"{"),
    "first line removed": lambda lines: lines.__delitem__(0),
    "middle line removed": lambda lines: lines.__delitem__(2),
    "last line removed": lambda lines: lines.__delitem__(-1),
    "all lines removed": lambda lines: lines.clear(),
    "line doubled": lambda lines: lines.insert(2, lines[2]),
    "line doubled at the end": lambda lines: lines.append(lines[-1]),
    "lines exchanged": lambda lines: lines.__setitem__(slice(1, 3), [lines[2], lines[1]]),
    "foreign line": lambda lines: lines.insert(2, json.dumps({"previous": "0" * 64}).encode()),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("later", [False, True], ids=["at once", "after further answers"])
def test_what_is_changed_added_or_removed_is_found(journal, attack, later):
    write(journal, *range(5))
    lines = _last(journal).read_bytes().splitlines()
    attack(lines)
    _last(journal).write_bytes(b"".join(line + b"\n" for line in lines))
    if later:
        write(journal, 5, 6)
    with pytest.raises(IntegrityError, match="was changed"):
        list(journal.entries())


@pytest.mark.parametrize("day", [0, 1, 2])
@pytest.mark.parametrize("later", [False, True])
def test_a_day_that_was_removed_is_found(journal, clock, day, later):
    for number in range(3):
        clock(f"2026-01-0{number + 1}")
        write(journal, number, number)
    journal.days()[day].unlink()
    if later:
        write(journal, 3)
    with pytest.raises(IntegrityError, match="removed"):
        list(journal.entries())


@pytest.mark.parametrize("content", [None, b"", b"nonsense\n"])
@pytest.mark.parametrize("later", [False, True])
def test_a_head_that_was_removed_or_changed_is_found(journal, content, later):
    write(journal, 0, 1)
    if content is None:
        (journal.folder / "head").unlink()
    else:
        (journal.folder / "head").write_bytes(content)
    if later:
        write(journal, 2, 3)
    with pytest.raises(IntegrityError, match="was changed"):
        list(journal.entries())


def test_an_entry_is_given_out_only_once_the_chain_bears_it_out(journal):
    write(journal, *range(4))
    lines = _last(journal).read_bytes().splitlines()
    _edit(lines, 1)
    _last(journal).write_bytes(b"".join(line + b"\n" for line in lines))
    seen = []
    with pytest.raises(IntegrityError, match=r"line 3 of .*\.jsonl does not go on"):
        seen.extend(journal.entries())
    assert [entry["number"] for entry in seen] == [0]


def test_an_old_day_is_deleted_only_past_its_time_and_a_line_tells_of_it(journal, clock):
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        clock(day)
        write(journal, int(day[-2:]))
    for day in range(1, 7):
        clock(f"2026-07-{day + 4:02d}")
        write(journal, 10 + day)
    clock("2026-07-05")
    assert journal.delete_older(184) == []
    clock("2026-07-11")
    write(journal, 17)
    assert journal.delete_older(184) == ["2026-01-01"]
    assert numbers(journal) == [2, 3, *range(11, 18)]
    assert journal.delete_older(184) == []
    told = [entry for entry in journal.entries() if entry["event"] == "deleted"]
    assert [(list(entry["days"]), entry["keep_days"]) for entry in told] == [(["2026-01-01"], 184)]
    clock("2026-07-12")
    write(journal, 18)
    assert journal.delete_older(184) == ["2026-01-02"]
    assert numbers(journal) == [3, *range(11, 19)]
    # The day after next is not yet told of: taking it away is found.
    journal.days()[0].unlink()
    with pytest.raises(IntegrityError, match="or a day before it, was changed or removed"):
        list(journal.entries())


@pytest.mark.parametrize("days", [1, 6])
def test_a_clock_that_runs_ahead_deletes_nothing(journal, clock, days):
    for day in range(1, 10):
        clock(f"2026-01-{day:02d}")
        write(journal, day)
    for day in range(days):
        clock(f"2038-01-{19 + day}")
        write(journal, 100 + day)
        assert journal.delete_older(184) == []
    assert len(journal.days()) == 9 + days and len(numbers(journal)) == 9 + days


def test_a_file_of_no_day_is_none_of_the_journal(journal, clock):
    clock("2026-01-01")
    write(journal, 1)
    for name in ("2026-02-30.jsonl", "2026-99-99.jsonl", "20260101.jsonl", "notes.txt"):
        (journal.folder / name).write_text("{}\n")
    assert [path.name for path in journal.days()] == ["2026-01-01.jsonl"]
    assert journal.delete_older(184) == [] and numbers(journal) == [1]


def later_answers(journal, clock, month="2026-12"):
    """Answers on as many later days as bear out that time has gone by."""
    for day in range(1, 8):
        clock(f"{month}-{day:02d}")
        write(journal, 100)


def test_days_that_are_deleted_while_somebody_reads_are_no_damage(journal, clock):
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        clock(day)
        write(journal, 1, 2)
    later_answers(journal, clock)
    reading = journal.entries()
    next(reading)
    journal.delete_older(200)
    with pytest.raises(ResourceError, match="were deleted while it was read: read it again"):
        list(reading)
    assert set(numbers(journal)) == {100}


def test_who_is_killed_while_old_days_are_deleted_leaves_a_whole_journal(journal, clock, monkeypatch):
    for day in ("2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"):
        clock(day)
        write(journal, int(day[-2:]))
    later_answers(journal, clock)
    deleted, unlink = [], Path.unlink

    def killed(path):
        if deleted:
            raise KeyboardInterrupt
        deleted.append(path)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        journal.delete_older(200)
    monkeypatch.undo()
    assert numbers(journal) == [2, 3, 4, *[100] * 7]


def test_a_day_deleted_before_its_time_is_found_although_a_line_tells_of_it(journal, clock):
    clock("2026-01-01")
    write(journal, 0)
    clock("2026-01-02")
    write(journal, 1)
    (first, _) = journal.days()
    digest = hashlib.sha256(first.read_bytes().splitlines()[-1]).hexdigest()
    journal.append([{"event": "deleted", "days": {"2026-01-01": digest}, "keep_days": 200}])
    first.unlink()
    with pytest.raises(IntegrityError, match="tells that 2026-01-01 was deleted before its time"):
        list(journal.entries())


def test_what_cannot_be_written_is_refused_with_one_sentence(journal, tmp_path):
    write(journal, 0)
    with pytest.raises(ResourceError, match="cannot be read or written"):
        Journal(tmp_path / "answers/head/below").append([{"number": 1}])
    _last(journal).rename(tmp_path / "elsewhere")
    (journal.folder / f"{datetime.now(UTC).date()}.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="cannot be read or written"):
        write(journal, 1)
    assert len((tmp_path / "elsewhere").read_bytes().splitlines()) == 1


def test_a_full_disk_refuses_the_answer_and_harms_no_other(journal):
    import resource

    write(journal, 0)
    size, before = _last(journal).stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
        with pytest.raises(ResourceError, match="File too large"):
            write(journal, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert _last(journal).stat().st_size == size + 30
    write(journal, 2)
    assert numbers(journal) == [0, 2]


def test_who_waits_too_long_for_another_is_refused(journal):
    write(journal, 0)
    with (journal.folder / "head").open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match=r"has held .*head for 0.05 s"):
            write(Journal(journal.folder, wait_s=0.05), 1)
    write(journal, 2)
    assert numbers(journal) == [0, 2]


def test_the_latest_entry_with_a_text_is_found_over_days(journal, clock):
    clock("2026-01-01")
    write(journal, 1, 2, 1)
    clock("2026-01-02")
    write(journal, 3)
    assert (
        journal.latest('"number":1')["previous"]
        == json.loads(journal.days()[0].read_bytes().splitlines()[2])["previous"]
    )
    assert journal.latest('"number":3', "answered")["at"] == "2026-01-02T12:00:00Z"
    assert journal.latest('"number":4') is None


def test_a_journal_that_was_never_written_is_whole(journal):
    assert list(journal.entries()) == [] and journal.latest("x") is None and journal.head() == "0" * 64
    assert journal.delete_older(200) == []
