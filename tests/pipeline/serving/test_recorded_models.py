"""Who can write to the store gets nothing loaded, let alone run, that the record does not know."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput, IntegrityError
from openmed.files import hashes_below, sha256_file
from openmed.inference.checkpoint import WEIGHTS_FILE
from pipeline import ledger, registry
from pipeline.ledger import record, repository
from pipeline.ledger.champion import carry_out, last
from pipeline.ledger.entry import PROMOTED
from pipeline.tracking.store import CHAMPION, MODEL_NAME, connect
from pipeline.tracking.versions import find
from tests.pipeline.conftest import make_workspace, register

FILM = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))[1].tobytes()
ALIAS, NUMBER = "models:/openmed-cxr@champion", "models:/openmed-cxr/1"
CHANGED = "in the store is not what was registered: restore it, or retrain"


@pytest.fixture(scope="module")
def crowned(tmp_path_factory, migrated):
    """A state folder with a champion; tests take a copy."""
    folder = tmp_path_factory.mktemp("crowned")
    (folder / "home").mkdir()
    shutil.copy(migrated, folder / "home/mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register(make_workspace(folder / "ws"))
        basis = ledger.Basis(
            "1", "PASS", None, registry.model_digest("1"), {"clinical": "Reads films."}, None
        )
        approval = ledger.Approval.of({"clinical": "Dr Adams"}, "")
        nobody = {"expected_champion": None, "expected_model": None}
        ledger.promote("1", approval=approval, judge=lambda: basis, **nobody)
    return folder / "home"


@pytest.fixture
def home(crowned, tmp_path, monkeypatch):
    home = shutil.copytree(crowned, tmp_path / "home")
    monkeypatch.setenv("OPENMED_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


def stored(home):
    (folder,) = home.glob("mlartifacts/models/*/artifacts")
    return folder


def served(address):
    import mlflow

    with connect():
        model = mlflow.pyfunc.load_model(address)
    return model.predict(pd.DataFrame({"image": [FILM]})).iloc[0].to_dict()


def refused(message):
    """Every way to load the version says the same."""
    for address in (ALIAS, NUMBER):
        for load in (served, registry.load, registry.load_predictor):
            with pytest.raises(IntegrityError, match=message):
                load(address)


def tell_the_store(home, version="1", **others):
    """Makes the tags say that what lies there now is right."""
    hashes = hashes_below(stored(home))
    weights = next(digest for path, digest in hashes.items() if path.endswith(WEIGHTS_FILE))
    tags = {"model_files": json.dumps(hashes), "weights_sha256": weights, **others}
    with connect() as client:
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)


@pytest.mark.parametrize("told", [False, True])
def test_uploaded_code_is_neither_run_nor_does_the_model_load(home, tmp_path, told):
    folder, mark = stored(home), tmp_path / "it ran"
    evil = f"open({str(mark)!r}, 'w')\n_load_pyfunc = open\n"
    (folder / "serving.py").write_text(evil)
    if told:
        tell_the_store(home)
    refused(CHANGED if told else f"serving.py of version 1 {CHANGED}")
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"] |= {"loader_module": "serving", "code": "."}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    if told:
        tell_the_store(home)
    refused(CHANGED if told else f"MLmodel of version 1 {CHANGED}")
    assert not mark.exists()


def test_the_name_that_mlflow_has_for_a_stored_model_leads_around_nothing(home, tmp_path):
    name = f"models:/{registry.get_version('1').tags['model_id']}"
    answer = served(name)
    assert answer["model"] == NUMBER and answer["label"] in ("NORMAL", "PNEUMONIA")
    folder, mark = stored(home), tmp_path / "it ran"
    (folder / "serving.py").write_text(f"open({str(mark)!r}, 'w')\n")
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"] |= {"loader_module": "serving", "code": "."}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    for address in (name, f"{name}/"):
        with pytest.raises(IntegrityError, match=CHANGED):
            served(address)
    assert not mark.exists()


def test_other_weights_are_refused_although_every_tag_agrees_with_them(home):
    assert served(ALIAS)["label"] in ("NORMAL", "PNEUMONIA")
    weights = stored(home) / "data/model" / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    tell_the_store(home)
    with connect() as client:
        assert find(client, "1").tags["weights_sha256"] == sha256_file(weights)
    refused(f"a file of version 1 {CHANGED}")


def test_a_version_that_the_record_does_not_know_is_refused_by_number_and_by_an_alias(home):
    with connect() as client:
        tags = find(client, "1").tags
        own = {key: value for key, value in tags.items() if not key.startswith("audit.")}
        made = client.create_model_version(MODEL_NAME, f"models:/{tags['model_id']}", tags=own)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, made.version)
    for load in (served, registry.load):
        with pytest.raises(IntegrityError, match="the record knows no registration of version 2"):
            load("models:/openmed-cxr/2")
        with pytest.raises(IntegrityError, match="champion points to version 2, but the record of decisions"):
            load(ALIAS)


def test_what_was_fetched_is_held_against_the_record_again_where_it_is_loaded(home):
    import mlflow

    with connect():
        folder = mlflow.artifacts.download_artifacts(NUMBER)
        assert served(folder)["model"] == NUMBER
        Path(folder, "input_example.json").write_text("another")
        with pytest.raises(IntegrityError, match=f"a file of version 1 {CHANGED}"):
            mlflow.pyfunc.load_model(folder)


def test_a_part_of_a_version_is_fetched_only_when_the_whole_is_right(home, tmp_path):
    import mlflow

    with connect():
        part = mlflow.artifacts.download_artifacts(f"{NUMBER}/data/model/model.json", dst_path=str(tmp_path))
        assert sha256_file(part) == sha256_file(stored(home) / "data/model/model.json")
        whole = mlflow.artifacts.download_artifacts(NUMBER, dst_path=str(tmp_path / "all"))
        assert (hashes_below(whole).keys() - hashes_below(stored(home)).keys()) == {"registered_model_meta"}
        (stored(home) / "conda.yaml").unlink()
        with pytest.raises(IntegrityError, match=f"conda.yaml of version 1 {CHANGED}"):
            mlflow.artifacts.download_artifacts(f"{NUMBER}/data/model/model.json")


def promote_in_spite_of(verdict):
    """Writes a promotion into the record that no command would make, and carries it out."""
    with repository.exclusive(), connect() as client:
        entries = record.read(client)
        before = last(entries, PROMOTED, version="1")
        content = before.content | {"verdict": verdict, "replaced": "1"}
        move = record.append(client, entries, PROMOTED, "1", content)
        carry_out(client, [*entries, move], move)


def move_alias():
    with connect() as client:
        client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
        client.set_registered_model_alias(MODEL_NAME, "previous", "1")


@pytest.mark.parametrize(
    ("change", "error", "link", "sentence"),
    [
        (
            lambda: ledger.hold("1", by="Dr Adams", reason="misses everything"),
            BadInput,
            "champion",
            "on hold since",
        ),
        (
            lambda: promote_in_spite_of("FAIL"),
            IntegrityError,
            "champion",
            "the gate of version 1, the champion, said FAIL: roll back",
        ),
        (move_alias, IntegrityError, "aliases", "points to none, but the record of decisions says version 1"),
    ],
)
def test_a_champion_that_may_not_answer_is_named_by_verify_and_refused_by_its_alias(
    home, change, error, link, sentence
):
    assert not any(each.problem for each in registry.verify("1"))
    change()
    broken = registry.verify("1")[-1]
    assert broken.name == link and sentence in broken.problem
    with pytest.raises(error, match=sentence):
        registry.load(ALIAS)
    if link == "champion":
        with pytest.raises(error, match=sentence):
            served(ALIAS)
    assert registry.load(NUMBER).spec.threshold is not None
