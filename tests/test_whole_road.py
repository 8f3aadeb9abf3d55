"""The real graph on tiny networks: by `dvc repro`, and by the real DAGs under a real Airflow."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.local.services import ENGINEER, REVIEWER, Services
from tests.airflow_runs import decide, wait_for_run
from tests.conftest import FILMS, ROOT, answered, toy_params, write_params, write_plan

pytestmark = pytest.mark.slow
ARCHITECTURES = ["resnet50", "vit"]


def run(folder: Path, *command: str, code: int = 0) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of this repository with toy settings and films, after its first `dvc repro`."""
    from openmed.phantoms.phantom import write_sample

    folder = tmp_path_factory.mktemp("road") / "project"
    folder.mkdir()
    tracked = run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").split()
    for name in tracked:
        if not name.startswith(("sample/", "tests/", "data.dvc")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_sample(folder / "data", films=FILMS, size_px=96)
    params = toy_params()
    params["architectures"] = ARCHITECTURES
    # What is tested is the road, not how well networks of a few kilobytes learn.
    params["evaluate"]["floors"] = {"sensitivity": 0.1, "specificity": 0.0, "auc": 0.2}
    write_params(folder, params)
    write_plan(folder)
    (folder / "dvc.lock").unlink(missing_ok=True)
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "add", "--quiet", "data")
    commit(folder, "Start")
    output = run(folder, "dvc", "repro")
    assert ran(output) == {
        *("validate", "split", "preprocess", "resample", "triage"),
        *(
            f"{stage}@{name}"
            for stage in ("train", "evaluate", "external", "explain")
            for name in ARCHITECTURES
        ),
    }
    commit(folder, "Run")
    return folder


@pytest.fixture
def told(project, openmed, monkeypatch):
    """Runs the command in the project with a state folder and returns what it prints."""

    def run_command(home: Path, *arguments: object) -> str:
        monkeypatch.setenv("OPENMED_HOME", str(home))
        monkeypatch.setenv("OPENMED_PROJECT", str(project))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(project)
        code, out, error = openmed(*arguments)
        assert code == 0, error
        return out

    return run_command


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", message)


def outputs(folder: Path) -> dict[str, str]:
    """Hash of every output, from dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_a_second_repro_does_nothing(project):
    assert ran(run(project, "dvc", "repro")) == set()
    assert run(project, "git", "status", "--porcelain") == ""


def test_a_comment_in_what_imports_films_or_hides_patients_trains_and_judges_nothing(project):
    changed = [*(project / "openmed/intake").glob("*.py"), *(project / "openmed/privacy").glob("*.py")]
    assert len(changed) > 10
    for file in changed:
        file.write_text(f"{file.read_text()}# A comment.\n")
    # Films from elsewhere are read by the same code as those that are imported.
    assert ran(run(project, "dvc", "repro", "--dry")) == {f"external@{name}" for name in ARCHITECTURES}
    run(project, "git", "checkout", "--quiet", ".")


def test_metrics_plots_and_graph_are_shown(project, tmp_path):
    metrics = json.loads(run(project, "dvc", "metrics", "show", "--json").partition("\n")[0])
    shown = metrics[""]["data"]["artifacts/evaluate/vit/metrics.json"]["data"]
    assert shown == defined(json.loads((project / "artifacts/evaluate/vit/metrics.json").read_text()))
    run(project, "dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    assert "Receiver operating characteristic" in (tmp_path / "plots/index.html").read_text()
    assert "train@vit" in run(project, "dvc", "dag")


def defined(metrics: dict) -> dict:
    """What DVC shows: it leaves out metrics that are null, such as those that could not be computed."""
    shown = {name: defined(value) if isinstance(value, dict) else value for name, value in metrics.items()}
    return {name: value for name, value in shown.items() if value not in (None, {})}


def test_a_changed_vit_setting_reruns_that_branch_alone(project):
    output = run(project, "dvc", "exp", "run", "-S", "train.vit.finetune.epochs=2")
    assert ran(output) == {"train@vit", "evaluate@vit", "external@vit", "explain@vit", "triage"}
    run(project, "git", "checkout", "--quiet", ".")
    run(project, "dvc", "checkout", "--quiet", "--force")


@pytest.mark.timeout(1500)
def test_the_dags_give_the_hashes_of_dvc_repro_and_an_approval_makes_the_champion(project, tmp_path, told):
    home = tmp_path / "home"
    with Services(project, home, schedule="off") as services:
        services.wait_healthy(180)
        for dag in ("retrain", "promote"):
            services.wait_for_dag(dag)
        admin, *people = (services.client(user) for user in ("admin", REVIEWER, ENGINEER))
        for dag in ("promote", "retrain"):
            admin.set_paused(dag, False)
        # Without force DVC would bring the outputs of `dvc repro` back from its run cache.
        admin.trigger("retrain", {"force": True}, "road")
        assert wait_for_run(admin, "retrain", "road", 900) == "success"
        workspace = home / "runs" / "road"
        assert outputs(workspace) == outputs(project)
        candidate = admin.xcom("retrain", "road", "register")
        promotion = wait_for_run_of(admin, "promote")
        assert answered(people, promotion) == "success"
        assert admin.task_states("promote", promotion)["promote"] == "success"
    listed = json.loads(told(home, "registry", "list", "--json"))
    champion = next(version for version in listed if "champion" in version["aliases"])
    assert champion["version"] == candidate["version"]
    assert champion["approved_by"] == f"{REVIEWER} (clinical), {ENGINEER} (technical)"
    assert "started by admin" in told(home, "registry", "show", champion["version"])
    verified = json.loads(told(home, "registry", "verify", champion["version"], "--json"))
    assert len(verified) == 12 and {link["problem"] for link in verified} == {None}
    films = unseen_films(tmp_path)
    result = json.loads(told(home, "evaluate", "models:/openmed-cxr@champion", films, "--json"))
    assert result["n"] == 40
    assert {"auc", "sensitivity", "specificity", "accuracy"} == set(result["intervals"])
    assert result["intervals"]["auc"][0] <= result["auc"] <= result["intervals"]["auc"][1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_version_is_trained_again_bit_for_bit(project, tmp_path, told):
    environment = {**os.environ, "OPENMED_HOME": str(tmp_path / "home"), "OPENMED_PROJECT": str(project)}
    revision = run(project, "git", "rev-parse", "HEAD").strip()
    code = (
        "from pathlib import Path; from pipeline import registry; "
        f"done = registry.register_candidates(Path('.'), run_key='r', revision='{revision}'); "
        "print(done.versions['vit'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    version = done.stdout.split()[-1]
    result = json.loads(told(tmp_path / "home", "reproduce", version, "--json"))
    assert result["agreement"] == "same bits"
    assert result["weights_sha256"]["recorded"] == result["weights_sha256"]["found"]
    assert not (tmp_path / "home/runs" / f"reproduce-{version}").exists()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_films_that_look_otherwise_hold_the_champion_until_a_person_releases_it(project, tmp_path, told):
    home = tmp_path / "home"
    environment = {**os.environ, "OPENMED_HOME": str(home), "OPENMED_PROJECT": str(project)}
    revision = run(project, "git", "rev-parse", "HEAD").strip()
    code = (
        "from pathlib import Path; from pipeline import registry; "
        "from pipeline.promotion import actions as promotion; "
        f"done = registry.register_candidates(Path('.'), run_key='r', revision='{revision}'); "
        "people = {'clinical': 'Dr Adams', 'technical': 'Ms Brown'}; "
        "promotion.promote(done.version, approved_by=people, comment='', expected_champion=None)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, check=True)
    incoming = brighter_films(tmp_path)
    with Services(project, home, mlflow_port=None, schedule="off") as services:
        services.wait_healthy(180)
        admin, reviewer = services.client("admin"), services.client(REVIEWER)
        for dag in ("hold", "score"):
            services.wait_for_dag(dag)
            admin.set_paused(dag, False)
        admin.trigger("score", {"films": str(incoming)}, "new")
        assert wait_for_run(admin, "score", "new", 300) == "success"
        done = admin.xcom("score", "new", "score")
        # The sample holds some films twice.
        assert done["scored"] + done["known"] == 160 and done["scored"] > 150
        assert admin.xcom("score", "new", "watch")["verdict"] == "FAIL"
        asked = wait_for_run_of(admin, "hold")
        champion = admin.xcom("score", "new", "watch")["version"]
        listed = json.loads(told(home, "registry", "list", "--json"))
        assert next(each["hold"] for each in listed if each["version"] == champion)
        assert decide(reviewer, "hold", asked, "Release", "looked at by hand", 240) == "success"
        assert admin.task_states("hold", asked)["keep"] == "skipped"
    shown = told(home, "registry", "show", champion)
    assert f"taken off hold by {REVIEWER}: looked at by hand" in shown
    assert (home / "watch/watch.html").is_file()


def brighter_films(folder: Path) -> Path:
    """Films of other patients, far brighter than those of the sample, without labels."""
    import cv2

    from openmed.phantoms.phantom import write_sample

    write_sample(folder / "bright", films=160, seed=98, size_px=96)
    (folder / "incoming").mkdir()
    for path in (folder / "bright/films").rglob("*.jpeg"):
        film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / "incoming" / f"{path.stem}.png"), cv2.add(film, 80))
    return folder / "incoming"


def wait_for_run_of(admin, dag: str) -> str:
    import time

    for _ in range(120):
        if found := admin.runs(dag):
            return found[-1]["dag_run_id"]
        time.sleep(0.5)
    raise AssertionError(f"no run of {dag} was started")


def unseen_films(folder: Path) -> Path:
    """A zip of films of other patients, as others pack them."""
    from openmed.phantoms.phantom import write_sample

    write_sample(folder / "new", films=40, seed=99, size_px=96)
    archive = folder / "some.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        for path in (folder / "new/films").rglob("*.jpeg"):
            stream.write(path, f"chest/test/{path.parent.name}/{path.name}")
    return archive
