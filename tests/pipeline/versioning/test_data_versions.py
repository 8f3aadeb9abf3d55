"""A new data version in one command: added, committed, pushed, announced; and the list of versions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from openmed.archives import place_of
from openmed.dataset.manifest import read_films
from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.phantoms.phantom import write_sample
from pipeline.settings.params import load_params
from pipeline.tools.git import git
from pipeline.versioning.data_versions import POINTER, add_version, log_versions
from tests.conftest import toy_params, write_params

CLASSES = ("NORMAL", "PNEUMONIA")


def run(folder, *command):
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A checkout with a first data version."""
    folder = tmp_path_factory.mktemp("versions") / "project"
    write_sample(folder / "data", films=40, size_px=48)
    write_params(folder, toy_params())
    for command in (
        ("git", "init", "--quiet"),
        ("git", "config", "user.name", "t"),
        ("git", "config", "user.email", "t@localhost"),
        (sys.executable, "-m", "dvc", "init", "--quiet"),
        (sys.executable, "-m", "dvc", "add", "--quiet", "data"),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message", "First films"),
    ):
        run(folder, *command)
    return folder


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    return folder


def new_films(folder, first, count, label="PNEUMONIA"):
    """Films of one class folder; each differs from every other."""
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        path = folder / label / f"person{number}_virus_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (48, 48))
        cv2.imwrite(str(path), noise)
    return folder


def add(project, source, home=None, **options):
    said = []
    home, params = home or project.parent / "home", load_params(project / "params.yaml")
    return vars(add_version(project, home, source, params, said.append, **options)), said


def test_films_are_appended_and_the_pointer_alone_is_committed(project, tmp_path):
    before = read_films(project / "data", CLASSES)
    (project / "notes.txt").write_text("mine")
    run(project, "git", "add", "notes.txt")
    done, said = add(project, new_films(tmp_path / "new", 0, 3))
    assert (done["added"], done["known"], done["pushed"], done["announced"]) == (3, 0, False, False)
    films = read_films(project / "data", CLASSES)
    assert films["path"].tolist()[:40] == before["path"].tolist() and len(films) == 43
    assert run(project, "git", "show", "--name-only", "--format=%s", done["revision"]).split("\n") == [
        "Add 3 films: PNEUMONIA 3",
        "",
        "data.dvc",
    ]
    assert run(project, "git", "status", "--porcelain") == "A  notes.txt"
    assert "No Airflow is running" in said[-1]
    assert not [path for path in project.iterdir() if path.name.startswith(".data")]


def test_new_films_carry_no_name_of_the_source(project, tmp_path):
    add(project, new_films(tmp_path / "new", 0, 3))
    added = read_films(project / "data", CLASSES).iloc[40:]
    assert added["path"].str.fullmatch(r"films/00000\.tar/\d+/PNEUMONIA/[0-9a-f]{16}\.png").all()
    assert added["patient"].str.fullmatch("p[0-9a-f]{16}").all() and added["patient"].is_unique


def test_new_films_carry_the_name_of_the_hospital_that_sent_them(project, tmp_path):
    add(project, new_films(tmp_path / "new", 0, 3), source_name="west")
    assert read_films(project / "data", CLASSES)["source"].tolist() == [""] * 40 + ["west"] * 3


def test_adding_the_same_films_again_changes_nothing(project, tmp_path):
    source = new_films(tmp_path / "new", 0, 3)
    first, _ = add(project, source)
    second, said = add(project, source)
    assert (second["added"], second["known"], second["revision"]) == (0, 3, None)
    assert "Nothing is new" in said[-1]
    assert run(project, "git", "rev-parse", "HEAD") == first["revision"]


def test_a_patient_keeps_the_pseudonym_in_a_later_version(project, tmp_path):
    add(project, new_films(tmp_path / "new", 7, 1))
    (tmp_path / "later/NORMAL").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "later/NORMAL/person7_virus_2.png"), np.eye(48, dtype=np.uint8) * 255)
    add(project, tmp_path / "later")
    assert read_films(project / "data", CLASSES)["patient"].iloc[40:].nunique() == 1


def test_a_kill_before_the_commit_is_made_good_by_the_same_call(project, tmp_path, monkeypatch):
    source = new_films(tmp_path / "new", 0, 3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.versioning.data_versions.write_counts", killed)
        with pytest.raises(KeyboardInterrupt):
            add(project, source)
    done, _ = add(project, source)
    assert done["added"] == 0 and done["revision"]
    assert log_versions(project)[0].films == 43


def test_films_that_are_there_under_another_label_are_refused(project, tmp_path):
    source = new_films(tmp_path / "new", 0, 2)
    add(project, source)
    (source / "PNEUMONIA").rename(source / "NORMAL")
    head = run(project, "git", "rev-parse", "HEAD")
    with pytest.raises(BadInput, match="2 of the new films are in the data already under another label"):
        add(project, source)
    assert run(project, "git", "rev-parse", "HEAD") == head
    assert len(read_films(project / "data", CLASSES)) == 42


def test_too_many_unusable_films_are_refused_and_nothing_is_added(project, tmp_path):
    source = new_films(tmp_path / "new", 0, 3)
    (source / "PNEUMONIA/person9_virus_1.png").write_text("no film")
    with pytest.raises(BadInput, match=r"1 of the 4 films .* are unusable.*: nothing was added"):
        add(project, source)
    assert len(read_films(project / "data", CLASSES)) == 40


def test_a_film_that_changed_since_its_import_never_becomes_a_version(project, tmp_path):
    add(project, new_films(tmp_path / "new", 0, 3))
    path = read_films(project / "data", CLASSES)["path"].iloc[41]
    archive, offset, _ = place_of(str(project / "data" / path))
    content = bytearray(Path(archive).read_bytes())
    content[offset + 512 + 60] ^= 1
    Path(archive).chmod(0o644)
    Path(archive).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"1 film\(s\) were changed .*/{path}: get"):
        add(project, new_films(tmp_path / "more", 50, 1))


def test_a_version_is_made_on_a_branch_alone(project, tmp_path):
    run(project, "git", "checkout", "--quiet", "--detach")
    before = (project / "data/films.csv").read_bytes()
    with pytest.raises(BadInput, match="stands on no branch"):
        add(project, new_films(tmp_path / "new", 0, 6))
    assert (project / "data/films.csv").read_bytes() == before


def test_the_films_are_pushed_to_the_default_remote(project, tmp_path):
    run(
        project,
        sys.executable,
        "-m",
        "dvc",
        "remote",
        "add",
        "--default",
        "hospital",
        str(tmp_path / "remote"),
    )
    done, _ = add(project, new_films(tmp_path / "new", 0, 3))
    assert done["pushed"]
    shutil.rmtree(project / "data")
    shutil.rmtree(project / ".dvc/cache")
    run(project, sys.executable, "-m", "dvc", "pull", "--quiet")
    assert len(read_films(project / "data", CLASSES)) == 43


def test_an_airflow_that_is_named_and_does_not_answer_stops_with_a_sentence(project, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMED_AIRFLOW_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="Airflow does not answer"):
        add(project, new_films(tmp_path / "new", 0, 1))


def test_the_log_lists_versions_with_counts_and_an_old_one_comes_back(project, tmp_path):
    add(project, new_films(tmp_path / "new", 0, 3))
    add(project, new_films(tmp_path / "more", 10, 2, "NORMAL"))
    newest, middle, first = log_versions(project)
    assert [version.films for version in (newest, middle, first)] == [45, 43, 40]
    assert newest.classes["NORMAL"] == middle.classes["NORMAL"] + 2
    assert first.classes == {} and first.patients is None and first.subject == "First films"
    assert (middle.patients + 2, middle.subject) == (newest.patients, "Add 3 films: PNEUMONIA 3")
    run(project, "git", "checkout", "--quiet", middle.revision)
    run(project, sys.executable, "-m", "dvc", "checkout", "--quiet", "--force")
    assert len(read_films(project / "data", CLASSES)) == 43


def test_films_that_are_imported_and_given_to_dvc_by_hand_are_counted_and_not_their_archives(
    project, tmp_path, monkeypatch
):
    from pipeline.commands.app import app

    add(project, new_films(tmp_path / "new", 0, 3))
    source = new_films(new_films(tmp_path / "other", 20, 4), 30, 2, "NORMAL")
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(project)
    assert CliRunner().invoke(app, ["data", "import", str(source), "--replace"]).exit_code == 0
    run(project, sys.executable, "-m", "dvc", "add", "--quiet", "data")
    run(project, "git", "commit", "--quiet", "--message", "Others", "--", "data.dvc")
    newest = log_versions(project)[0]
    assert (newest.films, newest.patients, newest.classes) == (6, 6, {"NORMAL": 2, "PNEUMONIA": 4})
    assert [path.name for path in (project / "data/films").iterdir()] == ["00000.tar"]


def test_a_checkout_without_films_is_refused_with_the_remedy(project, tmp_path):
    shutil.rmtree(project / "data")
    with pytest.raises(BadInput, match=r"holds no films yet: get them with `dvc pull data\.dvc`"):
        add(project, new_films(tmp_path / "new", 0, 1))


def test_the_commands_speak_json(project, tmp_path):
    shutil.copy(Path(__file__).parents[3] / "dvc.yaml", project)
    source = new_films(tmp_path / "new", 0, 3)
    added = json.loads(
        run(project, sys.executable, "-m", "pipeline.commands.app", "data", "add", str(source), "--json")
    )
    listed = json.loads(run(project, sys.executable, "-m", "pipeline.commands.app", "data", "log", "--json"))
    assert listed[0]["revision"] == added["revision"] and listed[0]["classes"]["PNEUMONIA"] >= 3
    shown = run(project, sys.executable, "-m", "pipeline.commands.app", "data", "log").splitlines()
    assert shown[0].split()[:3] == ["revision", "date", "films"] and added["revision"][:10] in shown[1]
    assert yaml.safe_load((project / "data.dvc").read_text())["meta"]["films"] == 43


def test_variables_of_a_git_hook_do_not_lead_elsewhere(project, tmp_path, monkeypatch):
    other = tmp_path / "other"
    run(tmp_path, "git", "init", "--quiet", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Ms Engineer")
    done, _ = add(project, new_films(tmp_path / "new", 600, 1))
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert git(project, "log", "-1", "--format=%H %an") == f"{done['revision']} Ms Engineer"
    assert sorted(path.name for path in other.iterdir()) == [".git"]


def test_a_commit_with_a_damaged_pointer_is_listed_as_damaged(project):
    before = log_versions(project)
    for text in ("outs: 5\n", "outs: [{md5: a.dir, md5: b.dir}]\n", "\x00", "- " * 100_000):
        (project / POINTER).write_text(text)
        git(project, "commit", "--quiet", "--all", "--message", "damaged")
    after = log_versions(project)
    assert [version.md5 for version in after[:4]] == [None] * 4
    assert after[4:] == before
    assert all(version.films is None and version.classes == {} for version in after[:4])
