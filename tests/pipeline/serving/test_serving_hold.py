"""What a version on hold answers, and that serving a version leaves its stored files as they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.errors import BadInput, IntegrityError
from openmed.files import hashes_below
from pipeline import ledger, registry
from pipeline.registry.models import check_files
from pipeline.tracking.store import MODEL_NAME, connect
from pipeline.tracking.versions import find
from tests.pipeline.conftest import crown, make_workspace, register

FILM = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))[1].tobytes()
ALIAS, NUMBER = "models:/openmed-cxr@champion", "models:/openmed-cxr/1"


@pytest.fixture
def champion(store, tmp_path):
    register(make_workspace(tmp_path / "ws"))
    crown("1")
    return store


def served(address):
    import mlflow

    with connect():
        model = mlflow.pyfunc.load_model(address)
    return model.predict(pd.DataFrame({"image": [FILM]})).iloc[0].to_dict()


def stored_files(home):
    (folder,) = home.glob("mlartifacts/models/*/artifacts")
    return folder


def fetched(address=NUMBER):
    """What MLflow's server fetches before it hands the folder to the process that answers."""
    import mlflow

    with connect():
        return mlflow.artifacts.download_artifacts(address)


def check(version="1"):
    with connect() as client:
        check_files(client, find(client, version))


def test_a_version_on_hold_is_refused_by_its_alias_and_warns_by_its_number(
    champion, openmed, tmp_path, monkeypatch
):
    assert served(ALIAS)["warning"] is None
    entry = ledger.hold("1", by="Dr Adams", reason="misses everything.")
    sentence = f"version 1 is on hold since {entry.at} (misses everything)"
    with pytest.raises(
        BadInput, match=r"is on hold since .* and models:/openmed-cxr@cham.* answers no films"
    ):
        served(ALIAS)
    answer = served(NUMBER)
    assert answer["warning"].startswith(sentence) and answer["label"] in ("NORMAL", "PNEUMONIA")
    # MLflow's server hands over a folder: whether an alias or a number was meant is not known.
    folder = fetched()
    with pytest.raises(BadInput, match="and answers no films as chall"):
        served(folder)
    monkeypatch.setenv("OPENMED_SERVE_ON_HOLD", "yes")
    assert served(folder)["warning"].startswith(sentence)
    assert served(ALIAS)["warning"].startswith(sentence)
    monkeypatch.delenv("OPENMED_SERVE_ON_HOLD")

    (tmp_path / "film.png").write_bytes(FILM)
    code, _, error = openmed("predict", ALIAS, tmp_path / "film.png")
    assert code == 2 and sentence in error and "name it as models:/openmed-cxr/1" in error
    code, out, error = openmed("predict", NUMBER, tmp_path / "film.png", "--json")
    assert code == 0 and error.startswith(f"warning: {sentence}")
    assert json.loads(out)["warning"].startswith(sentence)
    assert openmed("explain", ALIAS, tmp_path / "film.png", "--out", tmp_path / "map.jpg")[0] == 2
    assert openmed("explain", NUMBER, tmp_path / "film.png", "--out", tmp_path / "map.jpg")[0] == 0

    ledger.release("1", by="Dr Adams", reason="a broken cable")
    assert served(ALIAS)["warning"] is None is registry.hold_warning(NUMBER)
    assert openmed("predict", ALIAS, tmp_path / "film.png")[0] == 0


def test_a_hold_that_the_store_no_longer_shows_is_still_one(champion):
    entry = ledger.hold("1", by="Dr Adams", reason="misses everything")
    with connect() as client:
        client.delete_model_version_tag(MODEL_NAME, "1", f"audit.{entry.number:06d}")
    assert served(NUMBER)["warning"].startswith(f"version 1 is on hold since {entry.at}")
    with pytest.raises(BadInput, match="and answers no films as chall"):
        served(fetched())


def test_a_hold_is_told_of_where_the_registry_does_not_know_the_version(champion, migrated):
    import mlflow

    folder = fetched()
    ledger.hold("1", by="Dr Adams", reason="misses everything")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{migrated}")
    mlflow.set_registry_uri(f"sqlite:///{migrated}")
    try:
        model = mlflow.pyfunc.load_model(folder)
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(before)
    answer = model.predict(pd.DataFrame({"image": [FILM]})).iloc[0]
    assert answer["warning"].startswith("version 1 is on hold since ")
    assert answer["model"] == NUMBER


@pytest.mark.slow
def test_a_version_that_was_served_from_the_store_is_still_whole(store, tmp_path):
    register(make_workspace(tmp_path / "ws"))
    folder = stored_files(store)
    before = hashes_below(folder)
    code = (
        "import mlflow, sys; mlflow.set_tracking_uri(sys.argv[1]); mlflow.pyfunc.load_model(sys.argv[2]);"
        "print(*(each.__file__ for each in sys.modules.values() if hasattr(each, '__file__')), sep='\\n')"
    )
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI")
    } | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    arguments = [
        sys.executable,
        "-c",
        code,
        f"sqlite:///{store / 'mlflow.db'}",
        "models:/openmed-cxr@challenger",
    ]
    done = subprocess.run(arguments, cwd=tmp_path, env=kept, capture_output=True, text=True, check=True)
    assert not [line for line in done.stdout.splitlines() if Path(line).is_relative_to(store)]
    # MLflow writes a file and Python its bytecode into what they load; that was a copy, and it is gone.
    assert hashes_below(folder) == before and not list(Path(kept["TMPDIR"]).glob("tmp*"))
    check()
    assert not [link for link in registry.verify("1") if link.problem]


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("python mlflow models serve -m models:/openmed-cxr@champion --env-manager local", ALIAS),
        ("mlflow models serve --port 1 --model-uri models:/openmed-cxr/1", NUMBER),
        ("mlflow models serve --model-uri=models:/openmed-cxr/1", NUMBER),
        ("mlflow models serve -mmodels:/openmed-cxr@champion", ALIAS),
        ("mlflow models serve -m /a/folder", None),
        ("python -m models:/openmed-cxr/1", None),
        ("mlflow models serve -m", None),
        ("", None),
    ],
)
def test_the_address_that_is_served_is_read_from_mlflows_command(command, address):
    from pipeline.serving.serving import served_address

    assert served_address(command.split(" ")) == address


def test_other_files_than_mlflows_own_cannot_be_put_beside_a_stored_version(champion):
    folder = stored_files(champion)
    said = folder / "registered_model_meta"
    for content in (
        "model_name: openmed-cxr\nmodel_version: '2'\n",
        "- 1\n",
        "\0",
        "!!python/object:os.x {}",
    ):
        said.write_text(content)
        with pytest.raises(IntegrityError, match="registered_model_meta of version 1 does not name it"):
            check()
    said.write_text("model_name: openmed-cxr\nmodel_version: '1'\n")
    check()
    (folder / "openmed").mkdir()
    (folder / "openmed/__init__.py").write_bytes(b"anything")
    with pytest.raises(IntegrityError, match=r"openmed/__init__.py of version 1 was added"):
        check()
