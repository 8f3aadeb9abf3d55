"""What all tests share: quiet tools and one small pipeline that really ran."""

import os

# Read when torch is loaded; spinning threads would fight with the services of other tests.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"

import contextlib
import copy
import fcntl
import gc
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.settings.project import environment
from tests.airflow_runs import decide

environment()

# Its log keeps the output that is there when it is first imported; that of a test is closed after it.
import dvc  # noqa: E402, F401

# A worker holds a million objects of libraries; searching them for garbage took an eighth of the time.
gc.set_threshold(200_000, 50, 100)

ROOT = Path(__file__).parents[1]
FILMS = 160


@pytest.fixture(autouse=True)
def _restored_environment() -> Iterator[None]:
    """Lets no test find the variables that another one, or what it called, has set."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def toy_params() -> dict:
    """The shipped settings with tiny real networks, so that all stages run in seconds."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["run"]["threads"] = 1
    params["preprocess"]["image_size_px"] = {"resnet50": 48, "vit": 48, "inceptionv3": 75}
    networks = {"resnet50": "test_resnet", "vit": "test_vit", "inceptionv3": "inception_v3.tv_in1k"}
    for name, settings in params["train"].items():
        settings |= {"timm_name": networks[name], "model_options": {}, "micro_batch_films": 8}
        settings["head"] |= {"epochs": 1, "learning_rate": 1.0e-3}
        settings["finetune"] |= {"epochs": 6, "learning_rate": 2.0e-3}
    params["train"]["vit"]["model_options"] = {"patch_size": 8}
    params["train"]["inceptionv3"]["finetune"] |= {"epochs": 1, "blocks": 1}
    params["train"]["inceptionv3"]["head"]["epochs"] = 0
    params["evaluate"] |= {"replicates": 200, "floors": {"sensitivity": 0.3, "specificity": 0.1, "auc": 0.5}}
    params["evaluate"]["abstention_coverage"] = 0.6
    params["explain"] = {"examples": 2, "checked_films": 8}
    return params


def write_params(folder: Path, params: dict) -> None:
    """Writes settings where the stages look for them."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def write_plan(folder: Path, roles: tuple[str, ...] = ("clinical", "technical")) -> None:
    """Writes a change plan that asks little: what is tested is seldom how well tiny networks learn."""
    plan = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    evaluation = plan["protocol"]["evaluation"]
    evaluation["floors"] = dict.fromkeys(evaluation["floors"], 0.0)
    evaluation["subgroups"]["floors"] = dict.fromkeys(evaluation["subgroups"]["floors"], 0.0)
    evaluation["subgroups"]["min_films"] = 5
    evaluation["max_calibration_error"], evaluation["net_benefit"]["above"] = 1.0, -1.0
    evaluation["calibration_slope"] = None
    evaluation["max_unlike"] = None
    no_floors = dict.fromkeys(evaluation["stress"]["site_floors"], 0.0)
    evaluation["stress"] = dict.fromkeys(evaluation["stress"], 1.0) | {"site_floors": no_floors}
    plan["protocol"]["reviewers"] = dict.fromkeys(roles, "Decides.")
    plan["protocol"].pop("accounts")
    (folder / "change_plan.yaml").write_text(yaml.safe_dump(plan))


def forget_hashes(folder: Path) -> None:
    """Takes the hashes off the list of films, as in a list written by hand: films may then be exchanged."""
    import pandas as pd

    table = folder / "data" / "films.csv"
    pd.read_csv(table, dtype=str, keep_default_na=False).drop(columns="sha256").to_csv(table, index=False)


def run_stages(folder: Path, names: list[str]) -> None:
    """Runs stages in this process, as `dvc repro` would in processes of their own."""
    import importlib

    from pipeline.settings.params import load_params

    with contextlib.chdir(folder):
        for name in names:
            stage, _, architecture = name.partition("@")
            module = importlib.import_module(f"pipeline.stages.{stage}")
            module.run(load_params(), *([architecture] if architecture else []))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest file first, so that the workers end at about the same time."""
    items.sort(key=lambda item: item.path.name != "test_whole_road.py")


@pytest.fixture
def params() -> dict:
    return copy.deepcopy(toy_params())


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A project folder in which every stage ran once on phantoms; only to be read."""
    return made_once("toy", make_toy, tmp_path_factory, worker_id)


def made_once(
    name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """Returns a folder that the first worker which needs it makes for all."""
    base = factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / name
    unfinished = folder.with_suffix(".unfinished")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(unfinished)
            unfinished.rename(folder)
    return folder


def make_toy(folder: Path) -> None:
    from openmed.phantoms.phantom import write_sample

    write_sample(folder / "data", films=FILMS, size_px=96)
    write_params(folder, toy_params())
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(ROOT / "decisions.csv", folder)
    shared = ["validate", "split", "preprocess", "resample"]
    each = [
        f"{stage}@{name}"
        for name in toy_params()["architectures"]
        for stage in ("train", "evaluate", "external", "explain")
    ]
    run_stages(folder, [*shared, *each, "triage"])


@pytest.fixture
def openmed(monkeypatch, capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""
    from pipeline.commands.app import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["openmed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def workspace(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy to change, with a state folder of its own."""
    folder = tmp_path / "project"
    shutil.copytree(toy, folder)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.chdir(folder)
    return folder


def answered(people, promotion) -> str:
    """Says yes once in each role, each by another person, and returns how the run ended."""
    from threading import Thread

    def clinical():
        decide(people[0], "promote", promotion, "Approve", "fine", 240, task="review.clinical")

    asking = Thread(target=clinical)
    asking.start()
    state = decide(people[1], "promote", promotion, "Approve", None, 240, task="review.technical")
    asking.join()
    return state
