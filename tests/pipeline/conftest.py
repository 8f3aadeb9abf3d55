"""A registry to test with: an empty store, and workspaces as the pipeline leaves them, made in a second."""

import hashlib
import shutil
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.files import write_json
from openmed.perturbations.hidden_parts import HIDDEN
from pipeline import ledger, registry
from pipeline.settings.plan import PLAN_FILE
from pipeline.tools.dvc_lock import dvc_md5
from tests.conftest import made_once, write_plan

TINY = {"resnet50": "test_resnet", "vit": "test_vit"}
SPLITS = ["train"] * 8 + ["validation"] * 4 + ["calibration"] * 4 + ["test"] * 24
FLOORS = {"auc": 0.5, "sensitivity": 0.5, "specificity": 0.5}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory, worker_id):
    """An empty store; building its tables takes seconds, so tests copy this one."""
    return made_once("migrated", _make_store, tmp_path_factory, worker_id) / "mlflow.db"


def _make_store(folder):
    import mlflow

    folder.mkdir()
    address = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.MlflowClient(address, address).search_experiments()


@pytest.fixture
def store(tmp_path, migrated, monkeypatch):
    """An empty state folder with a migrated store in it."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home / "mlflow.db")
    monkeypatch.setenv("OPENMED_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture(scope="session")
def shared(tmp_path_factory, migrated):
    """A state folder with one registered candidate, and its workspace: for tests that change nothing."""
    home, workspace = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("shared")
    shutil.copy(migrated, home / "mlflow.db")
    make_workspace(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(workspace)
    return home, workspace


@pytest.fixture
def registered(shared, monkeypatch):
    """The shared state folder and workspace, with the environment pointing there."""
    monkeypatch.setenv("OPENMED_HOME", str(shared[0]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shared


def make_workspace(
    folder,
    architectures=("resnet50",),
    *,
    seed=0,
    films_seed=0,
    good=True,
    floors=FLOORS,
    validation=None,
    unlike_share=None,
    splits=SPLITS,
    change=lambda rows: rows,
    external=None,
    **edits,
):
    """Writes what the pipeline leaves behind: tiny real models, and scores that are right or not.

    `external` is set -> its films: label, view and score, and perhaps second_label, one row a film.
    """
    films = _write_films(folder, films_seed, splits)
    params = {
        "task": {"classes": ["NORMAL", "PNEUMONIA"], "positive": "PNEUMONIA"},
        "run": {"seed": 1},
        "architectures": list(architectures),
        "train": {name: {"timm_name": TINY[name], "head": {"epochs": 1}} for name in architectures},
        "evaluate": {
            "replicates": 200,
            "confidence": 0.95,
            "target_sensitivity": 0.9,
            "threshold_confidence": None,
            "threshold_of": "films",
            "target_specificity": None,
            "floors": floors,
        },
        "promotion": {"margins": {"auc": 0.02, "sensitivity": 0.05, "specificity": 0.05}},
    } | edits
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "data.dvc").write_text("outs:\n- md5: 0123abcd.dir\n  path: data\n")
    for index, name in enumerate(architectures):
        auc = (validation or {}).get(name, 0.9 - index / 10)
        options = {"seed": seed, "good": good, "change": change, "unlike_share": unlike_share}
        _write_candidate(folder, name, films, params, validation_auc=auc, **options)
        _write_external(folder, name, params, external or {})
    return write_lock(folder)


def write_lock(folder):
    """Writes a dvc.lock as if the evaluate stage had just written what lies there."""
    if not (folder / PLAN_FILE).exists():
        write_plan(folder, ("clinical",))
    pointer = folder / "data.dvc"
    data = yaml.safe_load(pointer.read_text())["outs"][0]["md5"] if pointer.exists() else None
    stages = {"validate": {"deps": [{"path": "data", "md5": data}]}}
    for candidate in sorted((folder / "artifacts/evaluate").iterdir()):
        outs = [path for path in sorted(candidate.iterdir()) if path.name != "roc.csv"]
        stages[f"evaluate@{candidate.name}"] = {"outs": outputs(folder, outs)}
        away = folder / "artifacts/external" / candidate.name
        stages[f"external@{candidate.name}"] = {"outs": outputs(folder, sorted(away.iterdir()))}
    for stage in ("validate", "split"):
        written = sorted((folder / "artifacts" / stage).iterdir())
        stages.setdefault(stage, {})["outs"] = outputs(folder, written)
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return folder


def outputs(folder, paths):
    """Lists files and folders as dvc.lock does."""
    return [{"path": str(path.relative_to(folder)), "md5": dvc_md5(path)} for path in paths]


def _write_films(folder, films_seed, splits):
    rng, rows = np.random.default_rng(films_seed), []
    for index, split in enumerate(splits):
        patient = f"DOE^JANE-{films_seed}{index // 2:03d}"
        path = f"films/{patient}_{index}.png"
        content = cv2.imencode(".png", rng.integers(0, 256, (40, 36), dtype=np.uint8))[1].tobytes()
        (folder / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        rows.append((digest[:16], path, digest, (index // 2) % 2, patient, split))
    films = pd.DataFrame(rows, columns=["id", "path", "sha256", "label", "patient", "split"])
    for stage in ("validate", "split"):
        (folder / "artifacts" / stage).mkdir(parents=True)
    # The size in pixels puts all films in one group.
    manifest = films.drop(columns="split").assign(status="accepted", width=36, height=40)
    manifest.to_parquet(folder / "artifacts/validate/manifest.parquet")
    films[["id", "patient", "label", "split"]].to_parquet(folder / "artifacts/split/split.parquet")
    write_json(folder / "artifacts/validate/summary.json", {"films": len(films)})
    (folder / "artifacts/validate/expectations.html").write_text("<p>All 8 expectations hold.</p>")
    return films


def _with_statistics(model, folder, films, rows, share):
    """Gives a model statistics of the training films, and the rows their distances."""
    from openmed.films.images import read_squares
    from openmed.fitted.feature_statistics import fit_statistics
    from pipeline.evaluation.novelty import choose_limit

    def squares(table):
        paths = films.set_index("id").loc[table["id"], "path"]
        return np.stack([read_squares(folder / "data" / path, [32])[0] for path in paths])

    train = films[films["split"] == "train"]
    model.statistics = fit_statistics(model.examine(squares(train))[1], train["label"])
    rows = rows.assign(distance=model.assess(squares(rows))[1])
    model.spec = replace(model.spec, novelty=choose_limit(rows, share, model.statistics))
    return rows


def _write_candidate(folder, name, films, params, *, seed, good, change, validation_auc, unlike_share):
    from openmed.gates.gate import gates_to_json
    from openmed.inference.checkpoint import save_model
    from openmed.inference.control import CONTROL_FILE, write_control
    from openmed.models.factory import ModelFactory
    from pipeline.evaluation.judgement import judge_test_films, operating_threshold
    from pipeline.evaluation.rules import Rules

    target, rules = folder / "artifacts/evaluate" / name, Rules.of(params, "params.yaml")
    rows = films[~films["split"].isin(("train", "left_out"))].drop(columns=["path", "sha256"])
    noise = np.random.default_rng(seed).uniform(0, 0.2, len(rows))
    right = (rows["label"] == 1) == good
    rows = rows.assign(score=np.where(right, 0.7 + noise, 0.1 + noise))
    # The threshold of a good model is then 0.5.
    rows.loc[rows["split"] == "calibration", "score"] = np.where(right, 0.75, 0.25)[
        rows["split"] == "calibration"
    ]
    rows = change(rows)
    rows = rows.assign(probability_NORMAL=1 - rows["score"], probability_PNEUMONIA=rows["score"])
    rows = rows.assign(logit_NORMAL=0.0, logit_PNEUMONIA=np.log(rows["score"] / (1 - rows["score"])))
    threshold = operating_threshold(rows, 1, rules)
    model = ModelFactory.create(name, timm_name=TINY[name], image_size_px=32, seed=seed)
    model.spec = model.spec.with_threshold(threshold)
    if unlike_share is not None:
        rows = _with_statistics(model, folder, films, rows, unlike_share)
    digest = save_model(target / "model", model)
    rows.to_parquet(target / "predictions.parquet")
    squares = np.random.default_rng(seed).integers(0, 256, (4, 32, 32)).astype(np.uint8)
    write_control(target / CONTROL_FILE, model.eval(), squares)
    intervals, gates = judge_test_films(rows, 1, threshold, rules)
    write_json(target / "gates.json", gates_to_json(gates))
    no_loss = {"value": 0.0, "low": 0.0, "high": 0.0}
    sites = {"validation": validation_auc, "test": 1.0}
    metrics = {
        "architecture": name,
        "positive": "PNEUMONIA",
        "threshold": threshold,
        "validation": {"auc": validation_auc},
        "test": {"n": int((rows["split"] == "test").sum())}
        | {key: value.to_json() for key, value in intervals.items()},
        "model": {"weights_sha256": digest},
        "reliability": {"calibrated": {"ece": 0.15}},
        "stress": {name: {"auc": 0.5, "loss": no_loss} for name in HIDDEN},
        "sites": {split: _at_sites(value) for split, value in sites.items()},
    }
    write_json(target / "metrics.json", metrics)
    (target / "roc.csv").write_text("fpr,tpr,threshold\n0,0,1\n")
    train, explain = folder / "artifacts/train" / name, folder / "artifacts/explain" / name
    train.mkdir(parents=True)
    (train / "history.csv").write_text(
        "epoch,step_name,train_loss,validation_loss,validation_auc,learning_rate,seconds\n"
        "1,head,0.7,0.7,,0.001,1.5\n2,finetune,0.5,0.6,0.8,0.001,1.5\n"
    )
    (explain / "examples").mkdir(parents=True)
    (explain / "examples/one.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes())
    (explain / "report.html").write_text("<p>Report</p>")


def _at_sites(value):
    worst = {"value": value, "low": value, "high": value, "site": "flat"}
    return {"films": 4, "worst": {"sensitivity": worst, "specificity": worst}, "sites": {}}


def _write_external(folder, name, params, sets):
    """Writes what the stage `external` leaves of sets, whose films are noise and scores are given."""
    from openmed.inference.checkpoint import read_spec
    from pipeline.evaluation.judgement import describe_external
    from pipeline.evaluation.rules import Rules
    from pipeline.stages.external import _COLUMNS

    parts = [pd.DataFrame(columns=list(_COLUMNS))]
    for title, rows in sets.items():
        rng, films = np.random.default_rng(list(title.encode())), []
        for number in range(len(rows)):
            content = cv2.imencode(".png", rng.integers(0, 256, (40, 36), dtype=np.uint8))[1].tobytes()
            path = f"{title}/films/{number}.png"
            (folder / "external" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "external" / path).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            films.append((title, digest[:16], path, digest, f"ROE^{title}-{number // 2:03d}"))
        known = pd.DataFrame(films, columns=["set", "id", "path", "sha256", "patient"])
        known = known.assign(
            second_label=pd.array([pd.NA] * len(rows), "Int64"), sex="", age_band="", source=""
        )
        known = known.assign(**rows.reset_index(drop=True))
        known = known.assign(logit_NORMAL=0.0, logit_PNEUMONIA=np.log(known["score"] / (1 - known["score"])))
        parts.append(known)
    films = pd.concat(parts[1:], ignore_index=True) if sets else parts[0]
    spec = read_spec(folder / "artifacts/evaluate" / name / "model")[0]
    shown = describe_external(films, spec, Rules.of(params, "params.yaml")) if sets else {}
    shown = {title: {"unusable": 0, **content} for title, content in shown.items()}
    target = folder / "artifacts/external" / name
    target.mkdir(parents=True)
    films.to_parquet(target / "predictions.parquet")
    write_json(target / "metrics.json", {"architecture": name, "sets": shown})


def elsewhere(labels=(0, 1), views=("AP", "PA"), films=60, *, right=1.0, seed=0):
    """Films of a set: of each class and view as many, and the share of them that is scored rightly."""
    rng = np.random.default_rng(seed)
    label = np.array(labels)[np.arange(films) // 2 % len(labels)]
    view = np.array(views)[np.arange(films) % len(views)]
    correct = rng.permutation(films) < right * films
    score = np.where((label == 1) == correct, 0.8, 0.2) + rng.uniform(-0.1, 0.1, films)
    return pd.DataFrame({"label": label, "view": view, "score": score})


def commit_settings(workspace):
    """Commits the change plan and the settings of a workspace, as far as they changed; returns the commit."""
    who = "-c user.name=t -c user.email=t@localhost -c core.autocrlf=false -c commit.gpgsign=false"
    script = (
        f"[ -e .git ] || git init -q; git add -f $(ls {PLAN_FILE} params.yaml); "
        f"git diff --cached --quiet || git {who} commit -qm settings; git rev-parse HEAD"
    )
    return subprocess.run(
        ["sh", "-ec", script], cwd=workspace, check=True, capture_output=True, text=True
    ).stdout.strip()


def register(workspace, run_key="run-1", started_by=None):
    """Registers what is in a workspace, whatever a test has changed in it."""
    revision = commit_settings(write_lock(workspace))
    return registry.register_candidates(workspace, run_key=run_key, revision=revision, started_by=started_by)


def crown(version, expected=None):
    """Makes a version the champion without judging it."""
    basis = ledger.Basis(version, "PASS", expected, "0" * 64, {"clinical": "Reads films."}, None)
    return ledger.promote(
        version,
        approval=ledger.Approval.of({"clinical": "Dr Adams"}, ""),
        expected_champion=expected,
        expected_model=None,
        judge=lambda: basis,
    )


def roll_back(reason, by, caller=None):
    """Makes the previous champion the champion again, as the command does."""
    return ledger.roll_back(by=by, reason=reason, check=registry.check, caller=caller)
