import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput
from openmed.files import sha256_bytes
from openmed.films.images import decode_film, resize_film
from openmed.inference.export import finish_export
from openmed.inference.referral import INVERTED
from openmed.inference.session import runtime
from openmed.oversight.answer_log import answer_journal
from pipeline import registry
from pipeline.tracking.store import connect

COLUMNS = [
    *("label", "probability", "threshold", "probabilities", "thresholds"),
    *("refer", "reason", "model", "warning"),
]


@pytest.fixture
def served(registered):
    import mlflow

    with connect():
        return mlflow.pyfunc.load_model(f"models:/{registry.MODEL_NAME}/1")


@pytest.fixture
def classifier(registered):
    return loaded(registered[1] / "artifacts/evaluate/resnet50/model")


def loaded(folder):
    from pipeline.serving.serving import FilmClassifier

    return FilmClassifier(folder)


@pytest.fixture
def films(registered):
    paths = sorted((registered[1] / "data/films").iterdir())
    return [path.read_bytes() for path in paths]


def expected(registered, films):
    model = registry.load(registered[1] / "artifacts/evaluate/resnet50/model")
    squares = np.stack([resize_film(decode_film(film), model.spec.image_size_px) for film in films])
    return model.predict(squares)[:, 1]


def test_a_served_model_answers_what_the_model_folder_answers(registered, served, classifier, films):
    answer = served.predict(pd.DataFrame({"image": films}))
    assert len(films) == 40 and list(answer.columns) == COLUMNS
    np.testing.assert_allclose(answer["probability"], expected(registered, films), atol=1e-6)
    assert set(answer.pop("model")) == {"models:/openmed-cxr/1"}
    own = classifier.predict(pd.DataFrame({"image": films}))
    assert set(own.pop("model")) == {None}, "no registry gave that folder"
    pd.testing.assert_frame_equal(own, answer)
    assert set(answer["threshold"]) == {0.5}
    flagged = answer["probability"] >= 0.5
    assert (answer["label"] == np.where(flagged, "PNEUMONIA", "NORMAL")).all()


def test_an_exported_model_is_served_by_onnx_runtime_with_the_same_answers(
    registered, classifier, films, tmp_path
):
    folder = shutil.copytree(registered[1] / "artifacts/evaluate/resnet50/model", tmp_path / "model")
    squares = np.stack([resize_film(decode_film(film), 32) for film in films])
    assert finish_export(folder, squares).startswith("exported to model.onnx")
    exported = loaded(folder)
    assert tuple(runtime(each._model.members[0]) for each in (classifier, exported)) == (
        "pytorch cpu",
        "onnxruntime",
    )
    table = pd.DataFrame({"image": films})
    answer, expected = exported.predict(table), classifier.predict(table)
    np.testing.assert_allclose(answer["probability"], expected["probability"], atol=1e-4)
    assert (answer["label"] == expected["label"]).all()


def test_a_served_model_refers_as_the_command_does(toy, classifier, films):
    from pipeline.inference import assemble, predict_films

    folder, paths = toy / "artifacts/evaluate/vit/model", sorted((toy / "data/films").rglob("*.*"))[:12]
    inverted = cv2.imencode(".png", 255 - decode_film(paths[0].read_bytes()))[1].tobytes()
    images = [*(path.read_bytes() for path in paths), inverted]
    answer = loaded(folder).predict(pd.DataFrame({"image": images}))
    rows = [vars(each) for each in predict_films(assemble([str(folder)]), paths)]
    assert {*rows[0]} | {"model", "warning"} == {*answer.columns}
    for name in set(COLUMNS) - {"model", "warning", "refer", "reason"}:
        assert answer[name].tolist()[:12] == [row[name] for row in rows], name
    assert answer["reason"].tolist() == [*(row["reason"] for row in rows), INVERTED]
    assert answer["refer"].tolist() == [*(row["refer"] for row in rows), True]


def test_no_films_give_no_rows(classifier):
    answer = classifier.predict(pd.DataFrame({"image": []}, dtype=object))
    assert len(answer) == 0 and list(answer.columns) == COLUMNS


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "the image in row 1 is empty"),
        (b"%PDF-1.4", "the image in row 1 is not a JPEG, PNG, TIFF or DICOM image"),
        (cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes(), "row 1 is 4 x 4 pixels"),
        (
            cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes(),
            "row 1 cannot be used: the film is blank",
        ),
    ],
)
def test_a_bad_image_is_named_by_its_row(classifier, films, image, message):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        classifier.predict(pd.DataFrame({"image": [films[0], image]}))
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_input_without_images_is_refused(classifier):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="needs a column 'image'"):
        classifier.predict(pd.DataFrame({"film": [b""]}))
    with pytest.raises(MlflowException, match="the image in row 0 is str, not the bytes"):
        classifier.predict(pd.DataFrame({"image": ["film.png"]}))


def test_a_model_without_a_threshold_is_not_served(classifier, registered, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(registered[1] / "artifacts/evaluate/resnet50/model", folder)
    content = json.loads((folder / "model.json").read_text())
    content["spec"]["threshold"] = None
    (folder / "model.json").write_text(json.dumps(content))

    with pytest.raises(BadInput, match="no operating threshold"):
        loaded(folder)


def test_a_stored_version_carries_no_code_but_names_the_versions_it_needs(registered):
    (folder,) = registered[0].glob("mlartifacts/models/*/artifacts")
    assert not list(folder.rglob("*.py")) and (folder / "data/model/model.json").is_file()
    requirements = (folder / "requirements.txt").read_text().split()
    assert len(requirements) == 14 and all("==" in line and "+" not in line for line in requirements)
    described = yaml.safe_load((folder / "MLmodel").read_text())
    flavor = described["flavors"]["python_function"]
    assert (flavor["loader_module"], flavor["code"]) == ("pipeline.serving.serving", None)
    assert json.loads(described["signature"]["inputs"])[0]["type"] == "binary"


def _post(url, content):
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_mlflow_serves_a_version_over_http_and_gives_no_answer_that_is_not_logged(
    registered, films, tmp_path
):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"models:/{registry.MODEL_NAME}/1"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", address, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{registered[0] / 'mlflow.db'}"}
    environment |= {"OPENMED_HOME": str(tmp_path / "state")}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
        rows = [[base64.b64encode(film).decode()] for film in films[:3]]
        url = f"http://127.0.0.1:{port}/invocations"
        status, answer = _post(url, {"dataframe_split": {"columns": ["image"], "data": rows}})
        assert status == 200, answer
        probabilities = [row["probability"] for row in answer["predictions"]]
        np.testing.assert_allclose(probabilities, expected(registered, films[:3]), atol=1e-6)
        bad = [[base64.b64encode(b"no film").decode()]]
        status, answer = _post(url, {"dataframe_split": {"columns": ["image"], "data": bad}})
        assert status == 400 and "the image in row 0 is not a JPEG, PNG, TIFF or DICOM image" in answer
        with ThreadPoolExecutor(4) as pool:
            request = {"dataframe_split": {"columns": ["image"], "data": rows[:1]}}
            assert [status for status, _ in pool.map(lambda _: _post(url, request), range(12))] == [200] * 12
        kept = list(answer_journal(tmp_path / "state").entries())
        assert [entry["film"] for entry in kept] == [
            sha256_bytes(film) for film in [*films[:3], *films[:1] * 12]
        ]
        assert {(entry["model"], entry["way"]) for entry in kept} == {(address, "serving")}
        (tmp_path / "state/answers").rename(tmp_path / "state/gone")
        (tmp_path / "state/answers").touch()
        status, answer = _post(url, request)
        assert status == 503 and "answers cannot be read or written" in answer and "label" not in answer
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
