"""Films measured by mapped tasks on two hosts that have a git remote and a DVC remote in common."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import host
import pandas as pd
import pytest
import retrain
import yaml

from openmed.archives import pack
from openmed.errors import ResourceError
from openmed.files import hashes_below
from openmed.phantoms.phantom import write_sample
from pipeline.stages import ranges
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import check_outputs
from pipeline.tools.git import git
from pipeline.versioning import training_states
from tests.conftest import ROOT, run_stages, toy_params, write_params
from tests.dags.hosts import COMMIT, SECRET, Hosts
from tests.dags.runs import Handed

FILMS, IN_ARCHIVE, RANGES = 50, 10, 3
STAGES = ("validate", "preprocess")
# Archives of each range, and how many of its films are no copy of one before.
NEW = ((1, 10), (2, 20), (2, 19))


def make_project(project: Path) -> None:
    """A project whose films lie in five archives, with the first stages alone."""
    write_sample(project / "data", films=FILMS, size_px=64)
    films = pd.read_csv(project / "data/films.csv", dtype=str, keep_default_na=False)
    contents = [(path, (project / "data" / path).read_bytes()) for path in films["path"]]
    shutil.rmtree(project / "data/films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmed.archives.ARCHIVE_FILMS", IN_ARCHIVE)
        films["path"] = list(pack(project / "data", contents))
    films.to_csv(project / "data/films.csv", index=False)
    params = toy_params() | {"architectures": ["resnet50", "inceptionv3"], "stages": {"map_over": RANGES}}
    write_params(project, params)
    shutil.copy(ROOT / "decisions.csv", project)
    (project / ".gitignore").write_text("/artifacts\n")
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in STAGES:
        stage = graph[name]
        # The code is that of this checkout.
        stage["deps"] = [each for each in stage["deps"] if not each.startswith(("openmed", "pipeline"))]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: graph[name] for name in STAGES}}))


def commit_data(project: Path, config: str = "") -> None:
    """Commits a project with its data, which are pushed where the configuration of DVC says so."""
    from dvc.repo import Repo

    git(project, "init", "--quiet", "--initial-branch", "main")
    Repo.init(str(project)).close()
    (project / ".dvc/config").write_text(config)
    with Repo(str(project)) as repo:
        repo.add(str(project / "data"))
        if config:
            repo.push()
    git(project, "add", "--all")
    git(project, *COMMIT, "first")


class Ranged(Hosts):
    """Two hosts with a run whose films are measured by ranges."""

    def __init__(self, root: Path, ti: Handed) -> None:
        super().__init__(root, ti)
        self.came: dict[str, tuple[bool, int]] = {}

    def measure(self, number: int, try_number: int = 1) -> str:
        """Runs an instance of the mapped task."""
        self.ti.task_id, self.ti.try_number = "measure", try_number
        return retrain.measure.function(number=number, of=RANGES, ti=self.ti)

    def states(self) -> Path:
        """Where the parts of the run lie on the DVC remote."""
        return self.root / "storage/openmed/states" / self.ti.run_id / "films"

    def sent(self) -> list[str]:
        """The parts on the DVC remote."""
        return sorted(path.parent.name for path in self.states().glob("*/newest.json"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Ranged:
    """The first range is measured on `one`, where the run was prepared, the others on `two`."""
    root = tmp_path_factory.mktemp("ranges")
    project = root / "one/project"
    project.mkdir(parents=True)
    (root / "storage").mkdir()
    make_project(project)
    commit_data(project, "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../../storage\n")
    git(root, "init", "--quiet", "--bare", "--initial-branch", "main", "remote.git")
    git(project, "remote", "add", "origin", "../../remote.git")
    git(project, "push", "--quiet", "origin", "main")
    git(root / "one", "clone", "--quiet", "../remote.git", str(root / "two/project"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROJECT", "HOME"):
            patch.setattr(host, name, root)
        patch.setenv("OPENMED_SITE_SECRET", SECRET)
        patch.setattr(retrain, "STAGES", load_graph(project / "dvc.yaml"))
        hosts = Ranged(root, Handed())
        hosts.on("one")
        hosts.prepare()
        for name, numbers in (("one", [0]), ("two", [1, 2])):
            folder = hosts.on(name)
            for number in numbers:
                hosts.measure(number)
            hosts.came[name] = (folder / "data").exists(), archives_of(hosts.root / name / "project")
    return hosts


@pytest.fixture
def hosts(begun, monkeypatch) -> Ranged:
    """The two as they have begun."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    for name in ("PROJECT", "HOME"):
        monkeypatch.setattr(host, name, begun.root)
    return begun


@pytest.fixture
def elsewhere(hosts, tmp_path) -> Ranged:
    """A copy of `one` and of the DVC remote, without the workspace, and the run as the remote has it."""
    shutil.copytree(hosts.root / "one/project", tmp_path / "one/project", symlinks=True)
    shutil.copytree(hosts.root / "storage", tmp_path / "storage")
    elsewhere = Ranged(tmp_path, hosts.ti)
    record = elsewhere.on("one").with_suffix(".json")
    (elsewhere.on("one") / ".dvc/tmp").mkdir(parents=True)
    record.write_text('{"remote": "store"}')
    return elsewhere


def take_over(hosts: Ranged, home: Path | None = None) -> list[str]:
    """Takes over what was sent into the store of `one`, or of another home; returns what it says."""
    said: list[str] = []
    ranges.take_over(host.PROJECT, home or host.HOME, hosts.on("one"), said.append)
    return said


def archives_of(project: Path) -> int:
    """How many archives are in the DVC cache of a checkout."""
    files = (path for path in (project / ".dvc/cache/files").rglob("*") if path.is_file())
    return sum(path.read_bytes()[257:262] == b"ustar" for path in files)


def size_of(path: Path) -> int:
    return path.stat().st_size


@contextlib.contextmanager
def no_decoder():
    """Fails whatever decodes a film."""

    def decode(*_, **__):
        raise AssertionError("a film is decoded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmed.measurement.measure.decode_with_depth", decode)
        patch.setattr("openmed.cache.writing.decode_squares", decode)
        yield


def test_the_archives_of_its_ranges_alone_come_to_a_host(hosts):
    assert hosts.came == {"one": (True, 5), "two": (False, 4)}
    assert hosts.sent() == [f"0000{number}" for number in range(5)]


def test_a_host_sends_what_is_new_to_it_and_on_another_try_all(hosts):
    hosts.on("one")
    shutil.rmtree(hosts.states() / "00000")
    assert hosts.measure(0) == "10 films in 1 of 5 archives were measured, 0 of them anew."
    assert "00000" not in hosts.sent()
    hosts.measure(0, try_number=2)
    assert "00000" in hosts.sent()


def test_stages_that_decode_nothing_give_the_bytes_of_one_host(hosts, elsewhere, monkeypatch):
    assert take_over(elsewhere) == ["took over what other hosts have learnt of the films in 5 of 5 archives"]
    assert take_over(elsewhere) == []
    monkeypatch.setenv("OPENMED_HOME", str(host.HOME))
    with no_decoder():
        run_stages(host.PROJECT, list(STAGES))
    found = hashes_below(host.PROJECT / "artifacts")
    assert {f"preprocess/{size}/00000.npy" for size in (48, 75)} <= found.keys()

    made = {}
    for name, where in (("validate", "two"), ("preprocess", "one")):
        folder = hosts.on(where)
        hosts.stage(name, learns=True)
        made |= hashes_below(folder / "artifacts")
    assert made == found
    alone = shutil.copytree(hosts.root / "one/project", elsewhere.root / "alone/project", symlinks=True)
    monkeypatch.setenv("OPENMED_HOME", str(elsewhere.root / "alone/home"))
    run_stages(alone, list(STAGES))
    for name in STAGES:
        check_outputs(alone, {"stages": {name: hosts.ti.written[name]["lock"]}}, name)


def test_what_is_damaged_gone_or_made_by_other_code_is_left_to_the_stage(elsewhere, monkeypatch):
    elsewhere.on("one")
    squares = {part: max((elsewhere.states() / part).iterdir(), key=size_of) for part in ("00001", "00002")}
    content = squares["00001"].read_bytes()
    squares["00001"].chmod(0o644)
    squares["00001"].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    squares["00002"].unlink()
    forged = elsewhere.states() / "00003/newest.json"
    forged.write_text(forged.read_text().replace("measured", "MEASURED"))
    again = "films are measured again here: "
    place, remote = f"states/{elsewhere.ti.run_id}/films", "on the DVC remote store"
    *said, last = take_over(elsewhere)
    assert said == [
        f"{again}75.npy of {place}/00001 {remote} was changed since it was sent",
        f"{again}{place}/00002 {remote} is gone",
        f"{again}{place}/00003 {remote} has no valid seal: something else wrote it",
    ]
    assert last.endswith("2 of 5 archives")
    squares["00001"].write_bytes(content)
    monkeypatch.setattr("openmed.cache.film_store._code_fingerprint", lambda: "another")
    assert take_over(elsewhere)[0] == (
        f"{again}{place}/00001 {remote} was made with other code than that of this host"
    )
    monkeypatch.setenv("OPENMED_HOME", str(host.HOME))
    with pytest.raises(AssertionError, match="a film is decoded"), no_decoder():
        run_stages(host.PROJECT, ["validate"])


def test_a_remote_that_does_not_answer_is_an_outage(elsewhere):
    elsewhere.on("one")
    shutil.rmtree(elsewhere.root / "storage")
    (elsewhere.root / "storage").write_text("no folder")
    with pytest.raises(ResourceError, match="the DVC remote store does not answer"):
        take_over(elsewhere)


def test_parts_go_when_their_run_is_registered_and_those_of_another_stay(elsewhere):
    folder = elsewhere.on("one")
    states = elsewhere.states().parent
    shutil.copytree(states, states.with_name("another"))
    training_states.forget(host.PROJECT, folder, print)
    assert elsewhere.sent() == []
    assert len(list(states.with_name("another").rglob("newest.json"))) == 5


def test_without_a_default_remote_nothing_is_sent(elsewhere, monkeypatch):
    folder = elsewhere.on("one")
    folder.with_suffix(".json").write_text('{"remote": null, "whole": true}')
    shutil.rmtree(elsewhere.root / "storage")
    shutil.copytree(host.PROJECT / "data", folder / "data")
    shutil.copy(host.PROJECT / "params.yaml", folder)
    said = [ranges.measure(host.PROJECT, host.HOME, folder, n, RANGES, say=print) for n in range(RANGES)]
    assert said == [f"{n}0 films in {n} of 5 archives were measured, {new} of them anew." for n, new in NEW]
    assert take_over(elsewhere) == [] and not (elsewhere.root / "storage").exists()
    monkeypatch.setenv("OPENMED_HOME", str(host.HOME))
    with no_decoder():
        run_stages(host.PROJECT, list(STAGES))


def test_films_in_files_of_their_own_are_left_to_the_stages(elsewhere):
    folder = elsewhere.on("one")
    folder.with_suffix(".json").write_text('{"remote": null, "whole": true}')
    write_sample(folder / "data", films=30, size_px=64)
    shutil.copy(host.PROJECT / "params.yaml", folder)
    said = ranges.measure(host.PROJECT, host.HOME, folder, 0, RANGES, say=print)
    assert said == "0 films in 0 of 0 archives were measured, 0 of them anew."


def test_the_dag_has_a_mapped_task_where_the_settings_say_so(tmp_path):
    from airflow.dag_processing.dagbag import DagBag

    for name in ("dags", "pipeline/stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    found = {}
    for number in (1, 3):
        write_params(tmp_path, params | {"stages": {"map_over": number}})
        bag = DagBag(dag_folder=str(tmp_path / "dags/retrain.py"))
        assert bag.import_errors == {}
        found[number] = bag.dags["retrain"]
    assert "measure" not in found[1].task_dict
    assert found[3].get_task("measure").op_kwargs_expand_input.value == {"number": [0, 1, 2]}
    assert found[3].get_task("measure").upstream_task_ids == {"prepare"}
    assert found[3].get_task("validate").upstream_task_ids == {"prepare", "measure"}
    learning = {task.task_id for task in found[3].tasks if getattr(task, "learns", False)}
    assert learning == set(STAGES)
    assert not any(getattr(task, "learns", False) for task in found[1].tasks)


@pytest.mark.long
def test_airflow_runs_the_ranges_and_the_stages_after_them(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    make_project(project)
    for name in ("dags", "pipeline", "openmed"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    commit_data(project)
    airflow = [sys.executable, "-m", "airflow"]
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "OPENMED_PROJECT": str(project),
        "OPENMED_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(project),
    }
    subprocess.run([*airflow, "db", "migrate"], env=environment, check=True, capture_output=True)
    only = ["--mark-success-pattern", "^(drift|register|cleanup)$"]
    done = subprocess.run(
        [*airflow, "dags", "test", "retrain", *only], env=environment, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert "state=success" in said
    for films, new in NEW:
        assert f"{films}0 films in {films} of 5 archives were measured, {new} of them anew." in said
    (folder,) = (tmp_path / "home/runs").glob("manual__*/")
    made = hashes_below(folder / "artifacts")
    alone = shutil.copytree(project / "data", tmp_path / "alone/data")
    for name in ("params.yaml", "decisions.csv"):
        shutil.copy(project / name, alone.parent)
    os.environ["OPENMED_HOME"] = str(tmp_path / "another")
    run_stages(alone.parent, list(STAGES))
    assert hashes_below(alone.parent / "artifacts") == made
