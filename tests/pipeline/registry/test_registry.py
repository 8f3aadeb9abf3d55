import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import read_json, sha256_file, write_json
from openmed.films.images import decode_film, resize_film
from openmed.inference.checkpoint import WEIGHTS_FILE
from pipeline import ledger, registry
from pipeline.promotion import actions as promotion
from pipeline.registry import candidates
from pipeline.registry.retraining import Retraining
from pipeline.tracking.versions import aliases
from tests.mlflow_server import free_port, running
from tests.pipeline.conftest import commit_settings, crown, make_workspace, register, write_lock


def client(home):
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}")


def stored_weights(home):
    return sorted(home.glob(f"mlartifacts/**/{WEIGHTS_FILE}"))


def test_each_architecture_becomes_a_version_and_validation_films_choose_the_challenger(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("resnet50", "vit"), validation={"resnet50": 0.7, "vit": 0.8})
    result = register(workspace)
    assert set(result.versions) == {"resnet50", "vit"}
    assert (result.architecture, result.verdict) == ("vit", "PASS")
    assert result.version == result.versions["vit"]
    assert registry.get_version(result.version).auc == 1.0
    assert aliases() == {"challenger": result.version}
    newest, oldest = registry.list_versions()
    assert (newest.version, oldest.version) == ("2", "1")
    assert newest.aliases == ["challenger"] and newest.sensitivity == 1.0 and newest.approved_by is None
    assert newest.created.endswith("+00:00")
    assert oldest.tags["data_md5"] == "0123abcd.dir"
    assert oldest.tags["dvc_lock_sha256"] == sha256_file(workspace / "dvc.lock")
    assert ledger.champion() is None
    runs = client(store).search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"} and len(runs) == 3
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, result.run_id}
    child = client(store).get_run(newest.run_id).data
    assert child.params["train.timm_name"] == "test_vit" and child.params["evaluate.floors.auc"] == "0.5"
    assert child.metrics["test_auc"] == 1.0 and child.metrics["best_validation_auc"] == 0.8
    history = client(store).get_metric_history(newest.run_id, "train_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.5)]


def test_what_could_not_be_measured_on_validation_films_is_never_the_best(tmp_path):
    workspace = make_workspace(
        tmp_path / "ws", ("resnet50", "vit"), validation={"resnet50": None, "vit": 0.1}
    )
    assert [candidate.architecture for candidate in Retraining.read(workspace).ranked] == ["vit", "resnet50"]


def test_the_challenger_is_the_best_at_its_worst_simulated_site_whatever_its_auc(tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("resnet50", "vit"), validation={"resnet50": 0.9, "vit": 0.8})
    metrics = read_json(workspace / "artifacts/evaluate/vit/metrics.json")
    metrics["sites"]["validation"]["worst"]["specificity"]["value"] = 0.95
    metrics["sites"]["validation"]["worst"]["sensitivity"]["value"] = 0.9
    write_json(workspace / "artifacts/evaluate/vit/metrics.json", metrics)
    assert [candidate.architecture for candidate in Retraining.read(write_lock(workspace)).ranked] == [
        "vit",
        "resnet50",
    ]


def test_a_run_key_belongs_to_one_revision(registered, tmp_path):
    workspace = shutil.copytree(registered[1], tmp_path / "ws")
    first = commit_settings(workspace)
    (workspace / "params.yaml").write_text("# Another revision.\n" + (workspace / "params.yaml").read_text())
    with pytest.raises(BadInput, match=f"was registered at revision {first}, not "):
        register(workspace)
    with pytest.raises(BadInput, match="run key"):
        register(registered[1], run_key="it's")


def test_a_run_key_belongs_to_who_started_it(registered, tmp_path):
    """A run of a scheduler that is deleted and started again under its name registers nothing."""
    workspace = shutil.copytree(registered[1], tmp_path / "ws")
    with pytest.raises(BadInput, match="run key run-1 was registered as started by nobody, not ada"):
        register(workspace, started_by="ada")


def test_a_retried_task_registers_nothing_twice(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    first = register(workspace)
    client(store).delete_registered_model_alias(registry.MODEL_NAME, "challenger")
    assert register(workspace) == first
    assert len(registry.list_versions()) == 1 and len(client(store).search_runs(["1"])) == 2
    # A decision made since then is not undone by the retry.
    assert aliases() == {}


@pytest.mark.parametrize("step", ["check_stored", "_make_version", "alias", "end"])
def test_a_kill_between_steps_leaves_one_version_of_each_architecture_after_a_retry(
    store, tmp_path, monkeypatch, step
):
    from mlflow import MlflowClient

    workspace = make_workspace(tmp_path / "ws", ("resnet50", "vit") if step == "_make_version" else ("vit",))
    owner, name = {
        "alias": (MlflowClient, "set_registered_model_alias"),
        "end": (MlflowClient, "set_terminated"),
    }.get(step, (candidates, step))
    with monkeypatch.context() as patch:
        calls, real = [], getattr(owner, name)

        def killed(*args, **kwargs):
            calls.append(1)
            # In a run of two, the first is made and the second is cut off.
            if step == "_make_version" and len(calls) == 1:
                return real(*args, **kwargs)
            raise KeyboardInterrupt

        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            register(workspace)
    result = register(workspace)
    found = registry.list_versions()
    assert sorted(str(version.architecture) for version in found) == sorted(result.versions)
    runs = client(store).search_runs(["1"])
    assert len(runs) == 1 + len(found) and {run.info.status for run in runs} == {"FINISHED"}
    assert aliases()["challenger"] == result.version


def test_a_model_that_was_stored_in_part_is_not_registered(store, tmp_path, monkeypatch):
    real = candidates.log_model

    def cut_short(run_id, folder):
        model_id = real(run_id, folder)
        with stored_weights(store)[0].open("r+b") as stream:
            stream.truncate(1000)
        return model_id

    monkeypatch.setattr(candidates, "log_model", cut_short)
    with pytest.raises(IntegrityError, match=r"weights\.safetensors of resnet50"):
        register(make_workspace(tmp_path / "ws"))
    assert registry.list_versions() == []


def test_a_pending_model_is_not_registered(store, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setattr(
        candidates,
        "log_model",
        lambda run_id, folder: mlflow.MlflowClient().create_logged_model("1", source_run_id=run_id).model_id,
    )
    with pytest.raises(IntegrityError, match="PENDING, not READY"):
        register(make_workspace(tmp_path / "ws"))
    assert registry.list_versions() == []


def test_nothing_stored_is_pickled_and_it_loads_where_pickles_are_refused(registered, monkeypatch):
    import mlflow

    store, version = registered[0], "1"
    assert registry.list_versions()[0].version == version
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    files = [path for path in store.joinpath("mlartifacts").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [
        path for path in files if path.suffix in (".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib")
    ]
    # A pickle of protocol 2 or later begins with 0x80 and its number, a torch archive is a zip.
    assert not [
        path for path in files if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")
    ]
    assert mlflow.pyfunc.load_model(f"models:/{registry.MODEL_NAME}/{version}") is not None


def test_no_patient_is_named_anywhere_in_the_store(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    page = workspace / "artifacts/validate/expectations.html"
    page.write_text("<p>Film films/DOE^JANE-0003_7.png is blank.</p>")
    (workspace / "artifacts/explain/resnet50/explain.json").write_text('{"patient": "DOE^JANE-0003"}')
    result = register(workspace)
    first = client(store).get_run(result.run_id)
    assert first.data.tags["withheld"] == "validate/expectations.html"
    assert registry.get_version(result.version).tags["withheld"] == "explain.json"
    for path in store.rglob("*"):
        assert "DOE" not in path.name
        if path.is_file():
            assert b"DOE^JANE" not in path.read_bytes(), path
            if path.suffix == ".parquet":
                assert "DOE^" not in pd.read_parquet(path).to_csv()
    predictions = pd.read_parquet(registry.artifact(result.version, "predictions.parquet"))
    original = pd.read_parquet(workspace / "artifacts/evaluate/resnet50/predictions.parquet").reset_index()
    # The same films still belong together.
    pairs = pd.concat([predictions["patient"], original["patient"]], axis=1).drop_duplicates()
    assert len(pairs) == original["patient"].nunique() == predictions["patient"].nunique()


def test_the_numbers_of_patients_depend_on_films_alone(tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    done = Retraining.read(workspace)
    renamed = Retraining(
        workspace,
        {},
        "",
        done.films.assign(patient=done.films["patient"].map(lambda name: f"x{name[::-1]}")),
        {},
        done.external,
    )
    before, after = done.pseudonyms(), renamed.pseudonyms()
    assert [before[name] for name in done.films["patient"]] == [
        after[name] for name in renamed.films["patient"]
    ]


def test_an_image_inside_a_page_is_not_taken_for_a_name(tmp_path):
    done = Retraining.read(make_workspace(tmp_path / "ws"))
    object.__setattr__(done, "films", done.films.assign(patient="12345"))
    assert not done.names_a_patient('<img src="data:image/png;base64,AA/12345/BB=="> 912345')
    assert done.names_a_patient("patient 12345.")


def test_a_name_is_found_however_it_is_written(tmp_path):
    done = Retraining.read(make_workspace(tmp_path / "ws"))
    object.__setattr__(done, "films", done.films.assign(patient="O'Brien & Müller"))
    texts = [
        "O'Brien & Müller",
        "O&#39;Brien &amp; Müller",
        json.dumps("O'Brien & Müller"),
        "O'BRIEN & MÜLLER",
    ]
    assert all(done.names_a_patient(f"seen: {text}.") for text in texts)
    assert not done.names_a_patient("O'Brien and Müller")


def test_load_gives_the_model_of_a_folder_version_or_alias(registered):
    _, workspace = registered
    films = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    folder = workspace / "artifacts/evaluate/resnet50/model"
    models = [
        registry.load(address)
        for address in (folder, "models:/openmed-cxr/1", "models:/openmed-cxr@challenger")
    ]
    assert models[1].spec == models[0].spec and models[0].spec.threshold == 0.5
    for model in models[1:]:
        np.testing.assert_array_equal(model.predict(films), models[0].predict(films))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "nowhere is no model folder: name one with a model.json"),
        ("models:/openmed-cxr/9", "openmed-cxr has no version 9: choose one of 1"),
        ("models:/openmed-cxr@champion", "openmed-cxr has no champion: choose one of challenger"),
        ("models:/other@champion", "is no model address: use models:/openmed-cxr@champion"),
        ("models:/openmed-cxr/x", "is no model address"),
    ],
)
def test_a_wrong_address_is_refused_in_one_sentence(registered, address, message):
    with pytest.raises(BadInput, match=message) as refused:
        registry.load(address)
    assert "\n" not in str(refused.value)


def test_an_empty_registry_is_no_error_to_read(store):
    assert registry.list_versions() == [] and aliases() == {} and ledger.champion() is None
    with pytest.raises(BadInput, match="openmed-cxr has no champion: register and promote a model first"):
        registry.load("models:/openmed-cxr@champion")
    with pytest.raises(BadInput, match="has no version 1: register a retraining first"):
        registry.check_model("1")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "model.json"])
def test_a_flipped_byte_in_the_stored_model_is_refused(registered, name):
    registry.check_model("1")
    path = stored_weights(registered[0])[0].with_name(name)
    before = path.read_bytes()
    # In the description: the threshold 0.5 becomes 0.4.
    place = before.index(b'"threshold": 0.5') + 15 if name == "model.json" else len(before) // 2
    path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    try:
        for read in (registry.check_model, lambda version: registry.load(f"models:/openmed-cxr/{version}")):
            with pytest.raises(IntegrityError, match=f"{name} of version 1 in the store is not what was"):
                read("1")
    finally:
        path.write_bytes(before)


def test_an_export_is_registered_with_its_model_and_held_to_its_hash(store, tmp_path):
    from openmed.inference.export import finish_export
    from openmed.inference.session import runtime

    workspace = make_workspace(tmp_path / "a")
    films = np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)
    assert finish_export(workspace / "artifacts/evaluate/resnet50/model", films).startswith("exported")
    address = f"models:/openmed-cxr/{register(workspace).version}"
    exported, model = registry.load_predictor(address), registry.load(address)
    assert runtime(exported) == "onnxruntime"
    np.testing.assert_allclose(exported.predict(films), model.predict(films), atol=1e-4)

    path = stored_weights(store)[0].with_name("model.onnx")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for read in (registry.load_predictor, registry.load, lambda _: registry.check_model("1")):
        with pytest.raises(IntegrityError, match=r"model\.onnx of version 1 in the store is not what was"):
            read(address)


def test_lost_weights_are_named(registered):
    folder = stored_weights(registered[0])[0].parent
    folder.rename(folder.with_name("elsewhere"))
    try:
        with pytest.raises(IntegrityError, match="of version 1 in the store is not what was registered"):
            registry.check_model("1")
    finally:
        folder.with_name("elsewhere").rename(folder)


def test_evidence_is_given_back_only_unchanged(registered):
    path = registry.artifact("1", "gates.json")
    assert json.loads(path.read_text())["verdict"] == "PASS"
    assert registry.report_address("1").endswith("report.html")
    with pytest.raises(BadInput, match=r"has no secret\.txt among its evidence"):
        registry.artifact("1", "secret.txt")
    content = path.read_text()
    try:
        path.write_text(content.replace("0.5", "0.4"))
        with pytest.raises(IntegrityError, match=r"gates\.json of version 1 was changed"):
            registry.artifact("1", "gates.json")
        path.unlink()
        with pytest.raises(IntegrityError, match=r"gates\.json of version 1 cannot be fetched"):
            registry.artifact("1", "gates.json")
    finally:
        path.write_text(content)


def test_a_candidate_without_a_report_has_no_report_address(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    shutil.rmtree(workspace / "artifacts/explain")
    (workspace / "artifacts/train/resnet50/history.csv").unlink()
    assert registry.report_address(register(workspace).version) is None


def test_the_champion_is_scored_on_the_test_films_with_its_own_preprocessing(store, tmp_path):
    first = register(make_workspace(tmp_path / "a")).version
    crown(first)
    second = make_workspace(tmp_path / "b", ("vit",), seed=5, films_seed=1)
    version = register(second, "run-2").version
    about = json.loads(registry.artifact(version, "champion.json").read_text())
    said = {"threshold": 0.5, "positive": "PNEUMONIA", "further_thresholds": {}, "problem": None}
    assert about == {"version": first, **said}
    scores = pd.read_parquet(registry.artifact(version, "champion_predictions.parquet"))
    films = registry.films_of(second).set_index("id").loc[scores["id"]]
    assert set(films["split"]) == {"test"} and len(films) == 24
    squares = [resize_film(decode_film((second / "data" / path).read_bytes()), 32) for path in films["path"]]
    expected = registry.load(tmp_path / "a/artifacts/evaluate/resnet50/model").predict(np.stack(squares))[
        :, 1
    ]
    np.testing.assert_allclose(scores["score"], expected, atol=1e-6)
    seen = pd.read_parquet(registry.artifact(version, "training_films.parquet"))
    assert seen["split"].value_counts().to_dict() == {"train": 8, "validation": 4, "calibration": 4}
    assert not set(seen["sha256"]) & set(films["sha256"])


def test_a_damaged_champion_does_not_stop_a_registration(store, tmp_path):
    first = register(make_workspace(tmp_path / "a")).version
    crown(first)
    stored_weights(store)[0].write_bytes(b"broken")
    version = register(make_workspace(tmp_path / "b", ("vit",)), "run-2").version
    about = json.loads(registry.artifact(version, "champion.json").read_text())
    assert about["version"] == first and "is not what was registered" in about["problem"]


def test_films_that_changed_after_validation_are_not_scored(store, tmp_path):
    first = register(make_workspace(tmp_path / "a")).version
    crown(first)
    workspace = make_workspace(tmp_path / "b", ("vit",), films_seed=1)
    films = registry.films_of(workspace)
    (workspace / "data" / films["path"].iloc[-1]).unlink()
    with pytest.raises(IntegrityError, match="was changed after it was validated") as refused:
        register(workspace, "run-2")
    assert "DOE" not in str(refused.value)


def test_a_workspace_that_lacks_something_is_refused_before_anything_is_logged(store, tmp_path):
    cases = {
        "params.yaml": "does not exist",
        "data.dvc": "does not exist",
        "artifacts/split/split.parquet": "missing or unreadable",
        "artifacts/evaluate/resnet50/gates.json": "does not exist",
    }
    for number, (name, message) in enumerate(cases.items()):
        workspace = make_workspace(tmp_path / f"ws{number}")
        (workspace / name).unlink()
        with pytest.raises(BadInput, match=message):
            register(workspace)
    for number, (content, message) in enumerate(
        {"a: 1": "lacks", "architectures: []": "no architecture"}.items()
    ):
        workspace = make_workspace(tmp_path / f"ps{number}")
        (workspace / "params.yaml").write_text(content)
        with pytest.raises(BadInput, match=message):
            register(workspace)
    assert registry.list_versions() == [] and client(store).search_runs(["1"]) == []


def test_evidence_of_another_model_is_refused(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    path = workspace / "artifacts/evaluate/resnet50/metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, metrics | {"threshold": 0.25})
    with pytest.raises(IntegrityError, match="another threshold"):
        register(workspace)
    write_json(path, metrics | {"model": {"weights_sha256": "0" * 64}})
    with pytest.raises(IntegrityError, match="other weights"):
        register(workspace)
    write_json(path, metrics)
    rows = pd.read_parquet(path.with_name("predictions.parquet"))
    rows.assign(patient="stranger").to_parquet(path.with_name("predictions.parquet"))
    with pytest.raises(BadInput, match="patients that are in no split"):
        register(workspace)
    rows.to_parquet(path.with_name("predictions.parquet"))
    write_json(path, metrics | {"note": "DOE^JANE-0003"})
    with pytest.raises(BadInput, match="names a patient"):
        register(workspace)
    manifest = workspace / "artifacts/validate/manifest.parquet"
    pd.read_parquet(manifest).iloc[1:].to_parquet(manifest)
    with pytest.raises(BadInput, match="a split of other films than its manifest"):
        register(workspace)


def test_a_server_that_is_down_is_told_in_one_sentence(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ResourceError, match="cannot be used") as refused:
        registry.list_versions()
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def tracked(tmp_path, migrated, monkeypatch):
    """A real tracking server on loopback, with a store and artifacts of its own, used from a project."""
    shutil.copy(migrated, tmp_path / "server.db")
    # The record of such a store is in the project's repository, which must not be this one.
    subprocess.run(["git", "init", "-q", tmp_path / "project"], check=True)
    (tmp_path / "project/dvc.yaml").touch()
    monkeypatch.setenv("OPENMED_PROJECT", str(tmp_path / "project"))
    port = free_port()
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1"]
    with running([*command, "--port", str(port), "--workers", "1"], tmp_path, port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
        yield tmp_path / "artifacts"


@pytest.mark.slow
def test_a_tracking_server_serves_as_well_as_a_local_store(tracked, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    first = register(workspace)
    assert register(workspace) == first
    record = promotion.promote("1", approved_by={"clinical": "Dr Adams"}, comment="", expected_champion=None)
    assert record.event == "promoted" and ledger.champion() == "1"
    assert len(registry.champion_profile()[1]) == 40
    second = make_workspace(tmp_path / "two", ("vit",), seed=1, films_seed=1)
    judged = promotion.gate(register(second, "run-2").version)
    assert judged.verdict == "PASS" and judged.films_compared == 24
    assert judged.report.startswith("http://127.0.0.1:") and judged.report.endswith("/report.html")
    assert registry.load("models:/openmed-cxr@champion").spec.threshold == 0.5
    (weights, _) = sorted(tracked.rglob(WEIGHTS_FILE), key=lambda path: path.stat().st_mtime)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(IntegrityError, match="is not what was registered"):
        registry.check_model("1")
    with pytest.raises(BadInput, match="has no version 3: choose one of 2, 1"):
        registry.check_model("3")


def test_importing_the_application_side_loads_no_heavy_library():
    code = (
        "import sys; from pipeline import registry; from pipeline.settings import project;"
        "print({'torch', 'timm', 'mlflow', 'pandas', 'cv2', 'sklearn'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def test_nothing_is_written_into_the_current_folder(store, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    register(make_workspace(tmp_path / "ws"))
    assert list(here.iterdir()) == []
    assert all(Path(path).is_relative_to(store) for path in stored_weights(store))
