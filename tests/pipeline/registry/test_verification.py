"""Every part of a version, changed by a byte behind the registry's back, is found and named."""

import fcntl
import json
import re
import shutil
import sqlite3

import pytest

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_bytes
from pipeline import ledger, registry
from pipeline.commands import app as cli
from pipeline.ledger import record
from pipeline.ledger.entry import HELD
from pipeline.promotion import actions as promotion
from pipeline.registry import candidates, verification
from pipeline.tools.git import git
from pipeline.tracking.store import connect, fetch
from pipeline.tracking.versions import aliases
from tests.pipeline.conftest import commit_settings, make_workspace, register, roll_back, write_lock

LINKS = [
    "record of decisions",
    "registration",
    "data, code, settings and split",
    "evidence",
    "plan and settings of the commit",
    "model",
    "control set",
    "verdict",
    "films from elsewhere",
    "decisions",
    "aliases",
    "champion",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory, migrated):
    """A registry in which version 2 took the place of version 1."""
    root = tmp_path_factory.mktemp("verified")
    home = root / "home"
    home.mkdir()
    shutil.copy(migrated, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for number, expected in ((1, None), (2, "1")):
            workspace = make_workspace(
                root / str(number), ("vit",), seed=number, films_seed=number, unlike_share=0.2
            )
            register(workspace, f"run-{number}", started_by="Ms Engineer")
            promotion.promote(
                str(number),
                approved_by={"clinical": "Dr Adams"},
                comment="looks right",
                expected_champion=expected,
            )
    shutil.copy(home / "mlflow.db", root / "snapshot.db")
    shutil.copytree(home / "record.git", root / "snapshot.git")
    return root


@pytest.fixture
def home(ground, monkeypatch):
    """Its state folder; what a test changes in the database and the record is undone."""
    monkeypatch.setenv("OPENMED_HOME", str(ground / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with sqlite3.connect(ground / "snapshot.db") as kept, sqlite3.connect(ground / "home/mlflow.db") as store:
        kept.backup(store)
    shutil.rmtree(ground / "home/record.git")
    shutil.copytree(ground / "snapshot.git", ground / "home/record.git")
    return ground / "home"


def broken(version="2"):
    """The last link that was checked: the broken one, or the aliases."""
    return registry.verify(version)[-1]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def change(home, statement, *values):
    with sqlite3.connect(home / "mlflow.db") as store:
        assert store.execute(statement, values).rowcount == 1


def files_of(home, version):
    found = registry.get_version(version)
    with connect() as client:
        parent = client.get_run(found.run_id).data.tags["mlflow.parentRunId"]
    places = {
        "data, code, settings and split": home / "mlartifacts" / parent,
        "evidence": home / "mlartifacts" / found.run_id,
        "model": home / "mlartifacts/models" / found.tags["model_id"],
    }
    return [
        (link, path) for link, root in places.items() for path in sorted(root.rglob("*")) if path.is_file()
    ]


def test_an_untouched_version_is_intact_in_every_link(home):
    for version in ("1", "2"):
        links = registry.verify(version)
        assert [link.name for link in links] == LINKS and {link.problem for link in links} == {None}


@pytest.fixture
def retrained(store, tmp_path, monkeypatch):
    """A project whose commit a retraining, in the same folder, is made of."""
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    (workspace / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("OPENMED_PROJECT", str(workspace))
    return workspace


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("change_plan.yaml", "change_plan.yaml of version 1 is not that of commit "),
        ("params.yaml", "promotion.margins.auc in params.yaml of version 1 is 0.5, but 0.02 in commit "),
    ],
)
def test_a_forged_plan_or_setting_is_named_although_all_hashes_agree(retrained, monkeypatch, name, said):
    commit_settings(write_lock(retrained))
    text = (retrained / name).read_text()
    assert "auc: 0.02" in text
    (retrained / name).write_text(text.replace("auc: 0.02", "auc: 0.5"))
    # As if who forged it had registered it with code of their own.
    monkeypatch.setattr(candidates, "check_committed", lambda workspace, revision: None)
    revision = git(retrained, "rev-parse", "HEAD")
    registry.register_candidates(retrained, run_key="run-1", revision=revision)
    git(retrained, "checkout", "--quiet", name)
    found = broken("1")
    assert found.name == "plan and settings of the commit" and said in found.problem
    with pytest.raises(IntegrityError, match="it was registered otherwise than it was committed; retrain"):
        promotion.gate("1")


def test_a_commit_that_is_not_in_the_project_is_said_and_breaks_nothing(
    retrained, monkeypatch, tmp_path, openmed
):
    register(retrained)
    where = LINKS.index("plan and settings of the commit")
    assert registry.verify("1")[where] == (LINKS[where], None, None)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setenv("OPENMED_PROJECT", str(other))
    revision = git(retrained, "rev-parse", "HEAD")
    said = f"the project here has no commit {revision}: ask where it is, or fetch it"
    assert registry.verify("1")[where] == (LINKS[where], None, said)
    code, out, _ = openmed("registry", "verify", "1")
    assert code == 0 and f"unknown  {LINKS[where]}: {said}" in out.splitlines()


def test_one_flipped_byte_in_any_stored_file_is_found_and_the_file_is_named(home):
    files = files_of(home, "2")
    assert {
        *("dvc.lock", "split.parquet", "predictions.parquet"),
        *("weights.safetensors", "statistics.safetensors", "MLmodel"),
    } <= {path.name for _, path in files}
    for link, path in files:
        before = path.read_bytes()
        path.write_bytes(flipped(before) if before else b"x")
        try:
            found = broken()
            assert (found.name, f"{path.name} of" in found.problem) == (link, True), (path, found)
        finally:
            path.write_bytes(before)
    assert broken().problem is None


def test_a_file_that_is_added_or_missing_is_named(home):
    path = files_of(home, "2")[0][1]
    aside = path.rename(path.with_name("aside"))
    try:
        assert "aside of the retraining was added" in broken().problem
    finally:
        aside.rename(path)


def test_a_change_of_any_tag_of_a_version_is_found(home):
    version = "2"
    tags = registry.get_version(version).tags
    assert {"verdict", "weights_sha256", "evidence", "approved_by", "started_by"} <= tags.keys()
    statement = "UPDATE model_version_tags SET value = ? WHERE version = ? AND key = ?"
    for key, value in tags.items():
        change(home, statement, value[:-1] + "~", int(version), key)
        found = broken(version)
        assert found.problem and f"tag {key} of version {version}" in found.problem, (key, found)
        change(home, statement, value, int(version), key)
    assert broken(version).problem is None


def test_a_change_of_any_entry_of_the_record_is_found_and_the_entry_is_named(home):
    statement = "UPDATE model_version_tags SET value = ? WHERE key = ?"
    entries = ledger.history()
    assert [entry.event for entry in entries] == ["registered", "promoted", "moved"] * 2
    for entry in entries:
        text, key = entry.to_text(), f"audit.{entry.number:06d}"
        for changed in (text.replace("Dr Adams", "Dr Eve"), text.replace("2026", "2025"), text[:-1]):
            if changed == text:
                continue
            change(home, statement, changed, key)
            found = broken()
            assert found.name == LINKS[0] and f"entry {entry.number} of the record" in found.problem
        change(home, statement, text, key)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_an_entry_that_is_missing_is_found(home, number):
    change(home, "DELETE FROM model_version_tags WHERE key = ?", f"audit.{number:06d}")
    found = broken()
    assert found.name == LINKS[0] and (
        "is missing" in found.problem or "later ones are missing" in found.problem
    )


def test_an_entry_put_in_by_hand_is_found(home):
    last = ledger.history()[-1]
    forged = ledger.Entry(7, last.at, "promoted", "1", {"by": "Dr Eve"}, "0" * 64)
    change(
        home,
        "INSERT INTO model_version_tags (name, version, key, value) VALUES (?, 1, 'audit.000007', ?)",
        registry.MODEL_NAME,
        forged.to_text(),
    )
    assert "entry 6 of the record" in broken().problem or "entry 7" in broken().problem
    assert sha256_bytes(forged.to_text().encode()) == forged.digest


def test_numbers_and_settings_shown_by_mlflow_are_those_of_the_evidence(home):
    run = registry.get_version("2").run_id
    change(home, "UPDATE params SET value = '0.1' WHERE run_uuid = ? AND key = 'evaluate.floors.auc'", run)
    assert "setting evaluate.floors.auc in MLflow" in broken().problem
    change(home, "UPDATE params SET value = '0.5' WHERE run_uuid = ? AND key = 'evaluate.floors.auc'", run)
    change(home, "UPDATE metrics SET value = 0.99 WHERE run_uuid = ? AND key = 'test_brier'", run)
    assert "metric test_brier at step 0 in MLflow" in broken().problem


def test_phases_of_a_training_that_measure_the_same_at_a_step_are_intact(store, tmp_path):
    workspace = make_workspace(tmp_path / "phases", ("vit",))
    (workspace / "artifacts/train/vit/history.csv").write_text(
        "epoch,step_name,train_loss,validation_loss,validation_auc,learning_rate,seconds\n"
        "1,head,0.7,0.7,0.5,0.001,1.5\n1,finetune,0.5,0.6,0.5,0.001,1.5\n"
    )
    links = registry.verify(register(workspace).version)
    assert len(links) == len(LINKS) and links[-1].problem is None


def test_an_alias_moved_behind_the_record_is_found(home):
    for alias, version in (("champion", "1"), ("previous", "2")):
        before = aliases()[alias]
        change(home, "UPDATE registered_model_aliases SET version = ? WHERE alias = ?", version, alias)
        found = broken()
        assert found.name == "aliases" and f"the alias {alias} points to version {version}" in found.problem
        change(home, "UPDATE registered_model_aliases SET version = ? WHERE alias = ?", before, alias)
    assert broken().problem is None


def test_a_verdict_that_its_predictions_do_not_carry_is_found_although_all_hashes_agree(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit",), good=False)
    gates = workspace / "artifacts/evaluate/vit/gates.json"
    gates.write_text(gates.read_text().replace('"FAIL"', '"PASS"'))
    assert register(workspace).verdict == "PASS"
    found = broken("1")
    assert found.name == "verdict" and "gates.json of version 1 says" in found.problem


def test_a_threshold_that_the_calibration_films_do_not_give_is_found(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    folder = workspace / "artifacts/evaluate/vit"
    for path in (folder / "metrics.json", folder / "model/model.json"):
        path.write_text(path.read_text().replace('"threshold": 0.5', '"threshold": 0.4'))
    register(workspace)
    found = broken("1")
    assert found.name == "verdict" and "the threshold of version 1 is 0.4" in found.problem


def test_a_limit_of_novelty_that_the_calibration_films_do_not_give_is_found(store, tmp_path):
    make_workspace(tmp_path, ("vit",), unlike_share=0.2)
    path = tmp_path / "artifacts/evaluate/vit/model/model.json"
    content = json.loads(path.read_text())
    content["spec"]["novelty"]["limit"] += 0.5
    path.write_text(json.dumps(content))
    register(tmp_path)
    found = broken("1")
    assert found.name == "verdict" and "the limit of novelty of version 1 says" in found.problem


def test_what_is_not_what_the_pipeline_wrote_is_not_registered(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    folder = workspace / "artifacts/evaluate/vit"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "roc.csv")
    assert len(files) == 6
    for path in files:
        before = path.read_bytes()
        path.write_bytes(flipped(before))
        with pytest.raises(IntegrityError, match="is not what evaluate@vit wrote"):
            registry.register_candidates(workspace, run_key="run-1", revision="abc")
        path.write_bytes(before)


def test_the_commands_tell_the_story_and_end_with_3_when_a_link_is_broken(home, capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["openmed", "registry", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    code, out, _ = run("show", "1")
    assert code == 0 and re.search(r"started by Ms Engineer, code [0-9a-f]{12}, data 0123abcd\.dir", out)
    assert "promoted by Dr Adams (clinical) as the first champion: looks right" in out
    assert "version 2 took its place, by Dr Adams (clinical)" in out.splitlines()[-1]
    code, out, _ = run("verify", "models:/openmed-cxr@champion", "--json")
    assert code == 0 and [link["link"] for link in json.loads(out)] == LINKS
    change(home, "UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
    code, out, error = run("verify", "2")
    assert (code, out.splitlines()[-1]) == (3, "broken  aliases") and "version 2, aliases:" in error
    code, out, _ = run("repair", "--by", "Dr Adams", "--reason", "moved by hand")
    assert (code, out) == (0, "version 2 is the champion, as the record says\n")
    assert "its alias was put back by Dr Adams" in run("show", "2")[1]
    with pytest.raises(BadInput, match="is no model address"):
        registry.version_at("champion")


def test_whoever_asks_for_the_champion_does_not_wait_for_a_verification(home, monkeypatch):
    asked = []

    def model(chain):
        with (home / "record.lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asked.append(ledger.champion())

    monkeypatch.setitem(verification._LINKS, "model", model)
    assert broken().problem is None
    assert asked == ["2"]


def test_a_decision_that_is_made_meanwhile_breaks_no_link(home, monkeypatch):
    def model(chain):
        ledger.reject("1", by="Dr Adams", reason="misses apical opacities")
        ledger.hold("2", by="Dr Adams", reason="more false alarms")

    monkeypatch.setitem(verification._LINKS, "model", model)
    assert broken("1").problem is None
    monkeypatch.undo()


def test_a_lost_connection_is_no_damage_and_may_be_tried_again(home, monkeypatch):
    import mlflow

    def unreachable(**_):
        raise ConnectionError("no route")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", unreachable)
    for ask in (registry.verify, registry.check, registry.check_model):
        with pytest.raises(ResourceError, match=r"cannot be fetched now \(ConnectionError\)"):
            ask("2")
    with pytest.raises(ResourceError, match=r"metrics.json of version 2 cannot be fetched now"):
        registry.artifact("2", "metrics.json")


def test_a_server_that_breaks_off_is_told_from_a_lost_file(home, tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            listed = "?" in self.path
            if not listed and not self.path.endswith("/cut"):
                self.send_error(404 if self.path.endswith("/lost") else 403)
                return
            body = b'{"files": []}' if listed else b"half"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body) if listed else 1000))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts"
        for path, expected in (("cut", ResourceError), ("refused", ResourceError), ("lost", IntegrityError)):
            with pytest.raises(expected, match="the file cannot be fetched"):
                fetch(f"{address}/{path}", str(tmp_path), "the file")
        server.shutdown()
    with pytest.raises(IntegrityError, match="the file cannot be fetched"):
        fetch((home / "absent").as_uri(), str(tmp_path), "the file")


def test_versions_are_listed_although_the_record_is_broken(home, capsys, monkeypatch):
    change(
        home,
        "UPDATE model_version_tags SET value = replace(value, 'run-1', 'run-9') WHERE key = 'audit.000001'",
    )
    for more in ((), ("--json",)):
        monkeypatch.setattr("sys.argv", ["openmed", "registry", "list", *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        assert ended.value.code == 3
        assert "of the record" in error and "was changed" in error
        if more:
            assert [version["version"] for version in json.loads(out)] == ["2", "1"]
        else:
            assert [line.split()[0] for line in out.splitlines()[1:]] == ["2", "1"]
            assert out.count("unknown") == 2


@pytest.mark.parametrize("content", [b"not a database" * 100, b"", b"SQLite format 3\0" + bytes(4096)])
def test_a_damaged_database_is_one_sentence(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(content)
    monkeypatch.setattr("sys.argv", ["openmed", "registry", "list"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    if content:
        assert ended.value.code == 4
        assert "cannot be used" in capsys.readouterr().err
    else:
        assert ended.value.code == 0  # an empty file is a fresh database


def test_a_previous_champion_that_was_rejected_since_is_not_rolled_back_to(home):
    ledger.reject("1", by="Dr Adams", reason="misses apical opacities")
    with pytest.raises(
        BadInput, match=r"version 1, the previous champion, was rejected by Dr Adams: promote"
    ):
        roll_back("more false alarms", "Dr Brown")
    assert ledger.champion() == "2"


FORGED = "checked\n2026-12-01T00:00:00Z  released by Prof. Real: all\tchecked"


def test_what_people_write_is_recorded_as_one_line(home):
    entry = ledger.hold("2", by=" Dr\u2028Adams ", reason=FORGED)
    assert entry.by == "Dr Adams"
    assert entry.reason == "checked 2026-12-01T00:00:00Z released by Prof. Real: all checked"
    assert not [what for _, what in ledger.story("2") if not what.isprintable()]
    for odd in ("x\x1b[2K", "x\u202etxt", "x\x00", "x\u200b", "a" * 2001):
        for by, reason in ((odd, "a reason"), ("Dr Adams", odd)):
            with pytest.raises(BadInput, match=r"cannot be shown|longer than 2000") as refused:
                ledger.reject("1", by=by, reason=reason)
            assert odd not in str(refused.value)
    with pytest.raises(BadInput, match="the comment holds characters"):
        promotion.promote("1", approved_by={"clinical": "Dr A"}, comment="\x1b[2K", expected_champion="2")


def test_an_entry_of_before_is_shown_on_one_line(home):
    with connect() as client:
        record.append(client, ledger.history(), HELD, "2", {"by": "x\x1b[2K", "reason": FORGED})
    (line,) = [what for _, what in ledger.story("2") if "hold" in what]
    assert line.isprintable()
    assert "x\\x1b[2K: checked\\n2026-12-01" in line


@pytest.mark.parametrize("number", ["٣", "²", "01", "-1", "1.0", "1e0", "9" * 30, "", " 1", "1\n", "⑦"])
def test_a_version_is_a_number_in_plain_digits(home, number):
    with pytest.raises(BadInput, match=r"has no version|is no model address"):
        registry.get_version(number)
    for address in (number, f"models:/openmed-cxr/{number}"):
        with pytest.raises(BadInput):
            registry.get_version(registry.version_at(address))
