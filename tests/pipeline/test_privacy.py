"""A whole run on films full of identifiers: none of them is in anything that the run writes or says."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from openmed.archives import place_of, read_stored
from openmed.films.grey import quiet
from openmed.phantoms.phantom import draw
from pipeline.monitoring.drift import check_drift
from tests.conftest import ROOT, run_stages, toy_params, write_params
from tests.openmed.privacy.planted import (
    NAME,
    compressed_dicoms,
    dicom,
    dicoms,
    jpeg,
    jpegs,
    planted_in,
    png,
    pngs,
    tiffs,
)
from tests.pipeline.conftest import register

pytestmark = pytest.mark.slow
FILMS = 132


@pytest.fixture
def source(tmp_path) -> Path:
    """Films of 66 patients as DICOM, JPEG and PNG, named after the patients, and one that is broken."""
    for number in range(FILMS):
        patient, sick = number // 2, number // 2 % 2 == 1
        film = draw(patient, number, pneumonia=sick, size_px=64).film
        name = f"DOE^JANE Musterstrasse {patient}_MRN-4711-9-{number}"
        makers = {
            ".dcm": lambda film, patient: dicom(film, PatientID=f"MRN-4711-9-{patient}", PatientSex="F"),
            ".jpg": lambda film, patient: jpeg(1, film),
            ".png": lambda film, patient: png(1, film),
        }
        suffix = list(makers)[number % 3]
        path = tmp_path / "source" / ("PNEUMONIA" if sick else "NORMAL") / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(makers[suffix](film, patient))
    (tmp_path / "source/NORMAL/DOE^JANE broken.dcm").write_bytes(bytes(128) + b"DICM" + b"DOE^JANE" * 20)
    return tmp_path / "source"


@pytest.fixture
def project(tmp_path, store, monkeypatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    params = toy_params() | {"architectures": ["resnet50"]}
    params["train"]["resnet50"]["finetune"]["epochs"] = 1
    params["evaluate"]["floors"] = {"sensitivity": 0, "specificity": 0, "auc": 0}
    write_params(folder, params)
    for name in ("dvc.yaml", "decisions.csv"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    (folder / "data.dvc").write_text("outs:\n- {md5: 0123456789abcdef0123456789abcdef.dir, path: data}\n")
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.chdir(folder)
    return folder


def imported(source: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.commands.app", "data", "import", str(source), "--replace"]
    return subprocess.run(command, capture_output=True, check=False)


def written(folder: Path) -> bytes:
    """Everything below a folder: names, contents, and tables as text, for they are compressed."""
    parts = []
    for path in folder.rglob("*"):
        parts.append(str(path.relative_to(folder)).encode())
        if path.suffix == ".parquet":
            parts.append(pd.read_parquet(path).to_csv().encode())
        elif path.is_file():
            parts.append(path.read_bytes())
    return b"\n".join(parts)


def test_no_identifier_is_in_anything_that_a_run_writes_or_says(source, project, store, capfd):
    assert len(planted_in(written(source))) > 4
    said = imported(source)
    assert said.returncode == 0
    stages = ["validate", "split", "preprocess", "resample"]
    run_stages(
        project, [*stages, *(f"{s}@resnet50" for s in ("train", "evaluate", "external", "explain")), "triage"]
    )
    check_drift(project)
    register(project, "planted")
    check_drift(project)
    output = "".join(capfd.readouterr()).encode() + said.stdout + said.stderr
    manifest = pd.read_parquet(project / "artifacts/validate/manifest.parquet")
    assert len(manifest) == FILMS + 1 and (manifest["status"] == "quarantined").sum() == 1
    assert set(manifest["sex"]) == {"F", ""} and b"resnet50" in output
    kept = b"\n".join([written(project), written(store), output])
    assert b"Grad-CAM" in kept and b"artifact_uri" in kept
    assert planted_in(kept) == []


def everywhere(folder: Path) -> dict[str, bytes]:
    """Films with a name in one place each, by the place."""
    with quiet():  # pydicom warns of what is planted
        return dict([*jpegs(), *pngs(), *tiffs(), *dicoms(), *compressed_dicoms(folder)])


def test_a_name_in_any_place_of_any_kind_of_film_is_in_nothing_that_an_import_writes_or_says(
    project, store, tmp_path
):
    films = everywhere(tmp_path) | {
        "burned in": dicom(BurnedInAnnotation="YES"),
        "no film": NAME * 9,
        "half": jpeg()[:900],
    }
    folder = tmp_path / "source" / "DOE^JANE 19610203"
    for number, content in enumerate(films.values()):
        path = (
            folder
            / ("NORMAL", "PNEUMONIA")[number % 2]
            / f"DOE^JANE {number}.{'dcm' if number % 3 else 'png'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    said = imported(folder.parent)
    assert said.returncode == 0, said.stderr
    assert b"1 of the films: nothing is kept but the reason, the film may show who it is of" in said.stdout
    params = toy_params()
    params["validate"]["max_quarantined_share"] = 0.5
    write_params(project, params)
    run_stages(project, ["validate"])
    manifest = pd.read_parquet(project / "artifacts/validate/manifest.parquet")
    unread = manifest["status"] == "quarantined"
    assert len(manifest) == len(films) and 3 <= unread.sum() < len(films) / 3
    assert manifest["reason"].str.contains("BurnedInAnnotation is YES").sum() == 1
    for path in [*project.rglob("*"), *store.rglob("*")]:
        name = str(path.relative_to(tmp_path)).encode()
        assert planted_in(name) == [] and (path.is_dir() or planted_in(path.read_bytes()) == []), path
    assert planted_in(manifest.to_csv().encode() + said.stdout + said.stderr) == []


@pytest.mark.parametrize(
    "film", ["DOE^JANE/a.png", "x/DOE^JANE/NORMAL/masks/a.png", "NORMAL/DOE^JANE\nb.png"]
)
def test_errors_name_no_folder(source, project, film):
    (source / film).parent.mkdir(parents=True, exist_ok=True)
    (source / film).write_bytes(jpeg())
    refused = imported(source)
    assert refused.returncode == 2 and b"rename" in refused.stderr
    assert planted_in(refused.stdout + refused.stderr) == []


def test_errors_name_no_film(source, project):
    (source / "NORMAL/DOE^JANE gone.png").symlink_to(source / "MRN-4711-9 absent.png")
    refused = imported(source)
    assert refused.returncode == 2 and b"cannot be read" in refused.stderr
    assert planted_in(refused.stdout + refused.stderr) == []


@pytest.mark.parametrize("stage", ["validate", "preprocess", "explain@resnet50"])
def test_any_flipped_byte_of_a_film_is_found_before_use_and_the_file_is_named(source, project, stage):
    assert imported(source).returncode == 0
    stages = [
        "validate",
        "split",
        "preprocess",
        "resample",
        "train@resnet50",
        "evaluate@resnet50",
        "external@resnet50",
    ]
    if stage != "validate":
        run_stages(project, stages[: 1 if stage == "preprocess" else None])
    for path in pd.read_csv(project / "data/films.csv")["path"]:
        archive, offset, _ = place_of(str(project / "data" / path))
        size = len(read_stored(str(project / "data" / path)))
        with Path(archive).open("r+b") as stream:
            stream.seek(offset + 512 + size * 2 // 3)
            changed = stream.read(1)[0] ^ 1
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([changed]))
    # Whichever film a stage reads first was changed.
    with pytest.raises(Exception, match=r"data/films/.*\.(jpg|png|dcm)") as found:
        run_stages(project, [stage])
    assert type(found.value).__name__ == "IntegrityError"
