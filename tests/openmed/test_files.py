"""Atomic writes: old content or new, never a part, never a leftover."""

import errno
import hashlib
import json
import math
import os

import pandas as pd
import pytest

from openmed import files
from openmed.errors import BadInput, IntegrityError, OpenMedError, ResourceError


def test_an_atomic_write_makes_the_folder_and_leaves_only_the_file(tmp_path):
    target = tmp_path / "new" / "folder" / "table.csv"
    with files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".csv"
        temporary.write_text("a")
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]
    assert target.read_text() == "a"


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_content_and_no_temporary_file(tmp_path, interruption):
    target = tmp_path / "weights.bin"
    files.write_bytes(target, b"old")
    with pytest.raises(interruption), files.atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the n")
        raise interruption
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]
    assert target.read_bytes() == b"old"


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        files.write_bytes(tmp_path / "taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_two_writers_of_one_file_use_different_temporary_files(tmp_path):
    with files.atomic_path(tmp_path / "a.txt") as first, files.atomic_path(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_json_turns_nan_and_infinities_into_null_at_any_depth(tmp_path):
    content = {"auc": math.nan, "low": [1.5, (math.inf, {"x": -math.inf})], "name": "Köln", "n": 3}
    files.write_json(tmp_path / "m.json", content)
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "Köln" in text and text.endswith("}\n")
    assert files.read_json(tmp_path / "m.json") == {
        "auc": None,
        "low": [1.5, [None, {"x": None}]],
        "name": "Köln",
        "n": 3,
    }
    assert json.loads(text)["n"] == 3


def test_text_is_written_as_utf8(tmp_path):
    files.write_text(tmp_path / "a.txt", "Größe")
    assert (tmp_path / "a.txt").read_bytes() == "Größe".encode()


def test_a_missing_or_broken_json_is_refused_by_name(tmp_path):
    with pytest.raises(BadInput, match=r"gone\.json does not exist"):
        files.read_json(tmp_path / "gone.json")
    (tmp_path / "broken.json").write_bytes(b'{"a": \xff')
    with pytest.raises(BadInput, match=r"broken\.json cannot be read as JSON"):
        files.read_json(tmp_path / "broken.json")
    with pytest.raises(BadInput, match="cannot be read as JSON"):
        files.read_json(tmp_path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_is_that_of_the_whole_file(tmp_path, size):
    data = bytes(index % 251 for index in range(size))
    (tmp_path / "f").write_bytes(data)
    assert files.sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_file_gets_a_second_name_or_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"content")
    files.link_or_copy(tmp_path / "a", tmp_path / "link")
    assert (tmp_path / "link").samefile(tmp_path / "a")

    def refuse(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    files.link_or_copy(tmp_path / "a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert not (tmp_path / "copy").samefile(tmp_path / "a")


def test_a_file_that_is_gone_is_not_copied(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.link_or_copy(tmp_path / "gone", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_each_error_has_its_exit_code():
    codes = [error.exit_code for error in (OpenMedError, BadInput, IntegrityError, ResourceError)]
    assert codes == [1, 2, 3, 4]


def test_an_output_that_is_an_input_is_refused_whatever_leads_to_it(tmp_path):
    film = tmp_path / "film"
    film.write_text("film")
    (tmp_path / "soft").symlink_to(film)
    (tmp_path / "hard").hardlink_to(film)
    (tmp_path / "other").write_text("film")
    for name in ("film", "soft", "hard", "../" + tmp_path.name + "/film"):
        with pytest.raises(BadInput, match="which is read"):
            files.check_not_input([tmp_path / "new", tmp_path / name], [tmp_path / "gone", film])
    files.check_not_input([tmp_path / "new", tmp_path / "other"], [film])


@pytest.mark.parametrize("content", [b"", b"PAR1garbage", b"PAR1" + bytes(100) + b"PAR1", b"a,b\n1,2\n"])
def test_a_damaged_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    for path in (tmp_path / "t.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(BadInput, match=f"{path.name} is missing or unreadable"):
            files.read_table(path)


def test_a_table_that_lacks_a_column_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"id": ["a"], "n": [1]}).to_parquet(path)
    assert files.read_table(path, needed=("id",)).to_dict("list") == {"id": ["a"], "n": [1]}
    assert list(files.read_table(path, ["n"]).columns) == ["n"]
    for more in ({"needed": ("id", "label")}, {"columns": ["label"]}):
        with pytest.raises(BadInput, match="unreadable"):
            files.read_table(path, **more)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"", b'{"a": 1', b"9" * 5000])
def test_damaged_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"t\.json cannot be read as JSON"):
        files.read_json(tmp_path / "t.json")
