"""The command: what it prints, what it refuses, with which exit code."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import confusion_matrix, roc_auc_score

from openmed.archives import read_stored
from openmed.files import sha256_file
from openmed.films.images import read_film, resize_film
from openmed.inference.checkpoint import load_model, read_spec
from openmed.inference.referral import INVERTED, NO_CLASS, ROTATED, UNLIKE
from pipeline import ledger
from tests.conftest import ROOT
from tests.pipeline.conftest import make_workspace, register

HEAVY = ("torch", "mlflow", "pandas", "airflow", "great_expectations", "sklearn", "cv2", "dvc")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with settings and a pointer to the sample, without films."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml", "data.dvc"):
        shutil.copy(ROOT / name, folder)
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A zip as the Guangzhou films are published: names that tell the patients, Mac files beside."""
    path = tmp_path_factory.mktemp("published") / "chest_xray.zip"
    rng = np.random.default_rng(0)
    names = [f"chest_xray/train/NORMAL/IM-{n:04d}-0001.jpeg" for n in range(6)]
    names += [f"chest_xray/train/PNEUMONIA/person{n // 2}_virus_{n}.jpeg" for n in range(12)]
    names += [f"chest_xray/test/NORMAL/NORMAL2-IM-{n:04d}-0001.jpeg" for n in range(3)]
    names += [f"chest_xray/test/PNEUMONIA/person{n}_bacteria_{n}.jpeg" for n in range(20, 25)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            film = rng.integers(0, 256, (40, 48), dtype=np.uint8)
            archive.writestr(name, cv2.imencode(".jpeg", film)[1].tobytes())
            archive.writestr(f"__MACOSX/{name}", b"not a film")
        archive.writestr("chest_xray/train/NORMAL/notes.txt", b"passed over")
    return path


@pytest.fixture(scope="module")
def vit(toy):
    return toy / "artifacts/evaluate/vit/model"


@pytest.fixture(scope="module")
def films(toy):
    """Test films of the toy."""
    split = pd.read_parquet(toy / "artifacts/split/split.parquet")[["id", "split"]]
    manifest = pd.read_parquet(toy / "artifacts/validate/manifest.parquet").merge(split, on="id")
    manifest = manifest[manifest["split"] == "test"]
    return manifest.assign(file=[toy / "data" / path for path in manifest["path"]])


@pytest.fixture(scope="module")
def judged(films, vit, tmp_path_factory):
    """Class folders of test films with an undecodable one among them, and what the library predicts."""
    folder = tmp_path_factory.mktemp("judged") / "films"
    for path, label in zip(films["file"], films["label"], strict=True):
        target = folder / ("NORMAL", "PNEUMONIA")[label] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "NORMAL/patient9999_1.jpeg").write_bytes(b"no film at all")
    return folder, probability(vit, films["file"])


def probability(model, paths):
    model = load_model(model)
    pixels = [resize_film(read_film(path), model.spec.image_size_px) for path in paths]
    return model.predict(np.stack(pixels))[:, 1]


def tree(folder):
    return {path: path.is_file() and sha256_file(path) for path in sorted(Path(folder).rglob("*"))}


def refused(result, part, code=2):
    status, out, err = result
    assert status == code
    assert out == ""
    assert err.startswith("openmed: ")
    assert err.count("\n") == 1
    assert part in err


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom pipeline.commands.app import main\nsys.argv = ['openmed', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a diagnosis" in " ".join(done.stdout.split())


def test_the_console_script_is_installed_and_ends_with_the_exit_code(tmp_path):
    script = Path(sys.executable).with_name("openmed")
    done = subprocess.run(
        [script, "predict", tmp_path / "none", tmp_path / "film.png"], capture_output=True, text=True
    )
    refused((done.returncode, done.stdout, done.stderr), "is no model folder")


def test_an_unknown_command_is_refused(openmed):
    code, _, err = openmed("diagnose")
    assert code == 2
    assert "No such command 'diagnose'" in err


def test_a_published_zip_is_laid_out_with_its_patients_and_splits(openmed, project, published):
    code, out, _ = openmed("data", "import", published)
    assert code == 0
    table = pd.read_csv("data/films.csv", dtype=str, keep_default_na=False)
    assert len(table) == 26
    assert all(read_stored(f"data/{path}") for path in table["path"])
    assert table.groupby("split").size().to_dict() == {"test": 8, "train": 18}
    assert table.groupby("label")["patient"].nunique().to_dict() == {"NORMAL": 9, "PNEUMONIA": 11}
    assert "26 films of 20 patients (NORMAL 9, PNEUMONIA 17)" in out
    assert "1 files were passed over" in out
    assert "patients from file names by the pattern of person<P>_<any>: 17 of 26 films" in out
    assert "dvc add data" in out


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--to", "data"]])
def test_an_import_takes_the_sample_remote_off_the_pointer(openmed, project, published, arguments):
    assert openmed("data", "import", published, *arguments)[0] == 0
    (out,) = yaml.safe_load(Path("data.dvc").read_text())["outs"]
    assert out["path"] == "data"
    assert "remote" not in out


def test_an_import_elsewhere_leaves_the_pointer(openmed, project, published):
    before = Path("data.dvc").read_text()
    assert openmed("data", "import", published, "--to", "elsewhere")[0] == 0
    assert Path("elsewhere/films.csv").is_file()
    assert Path("data.dvc").read_text() == before


def test_an_occupied_data_folder_is_refused_and_untouched(openmed, project, published):
    Path("data").mkdir()
    Path("data/mine.txt").write_text("mine")
    before = tree(project)
    refused(openmed("data", "import", published), "is not empty")
    assert tree(project) == before


def test_replace_swaps_the_films(openmed, project, published):
    Path("data").mkdir()
    Path("data/mine.png").write_text("mine")
    Path("data/films.csv").write_text("path,label,patient\nmine.png,NORMAL,p\n")
    assert openmed("data", "import", published, "--replace")[0] == 0
    assert {path.name for path in Path("data").iterdir()} == {"films", "films.csv"}
    assert {path.name for path in project.iterdir()} == {"data", "data.dvc", "dvc.yaml", "params.yaml"}


@pytest.mark.parametrize(
    ("to", "problem"),
    [
        *((to, "which would be replaced") for to in (".", "..", "data/..")),
        ("data", "is no data folder"),
        ("link", "is a link"),
    ],
)
def test_replace_touches_nothing_but_a_data_folder(openmed, project, published, to, problem):
    Path("data").mkdir()
    Path("data/thesis.txt").write_text("mine")
    Path(".git").mkdir()
    Path("link").symlink_to(project / "data", target_is_directory=True)
    before = tree(project)
    refused(openmed("data", "import", published, "--to", to, "--replace"), problem)
    assert tree(project) == before and Path("link").is_symlink()


def test_films_to_import_are_never_what_is_replaced(openmed, project, published):
    assert openmed("data", "import", published)[0] == 0
    before = tree(project)
    for source in ("data", "data/films", "data/films.csv"):
        refused(openmed("data", "import", source, "--replace"), "which would be replaced")
    assert tree(project) == before


def test_a_failed_import_leaves_the_old_films_and_the_pointer(openmed, project, tmp_path):
    Path("data").mkdir()
    Path("data/films.csv").write_text("path,label,patient\n")
    before = tree(project)
    (tmp_path / "broken.zip").write_bytes(b"PK broken")
    refused(openmed("data", "import", tmp_path / "broken.zip", "--replace"), "not a whole zip archive")
    assert tree(project) == before


def test_import_prints_only_json_when_asked(openmed, project, published):
    _, out, err = openmed("data", "import", published, "--json", "--limit", "10")
    summary = json.loads(out)
    assert summary["films"] == sum(summary["per_class"].values()) == len(pd.read_csv("data/films.csv"))
    assert summary["films"] < 26
    assert err == ""


def test_import_says_which_films_name_no_patient_and_were_merged(openmed, project, tmp_path):
    film = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8), (64, 1)))[1].tobytes()
    for split, count in (("train", 110), ("val", 1), ("test", 4)):
        for label in ("NORMAL", "PNEUMONIA") if split != "val" else ("NORMAL",):
            folder = tmp_path / "mine" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{label}{split}{number}.png").write_bytes(film)
    _, out, _ = openmed("data", "import", tmp_path / "mine")
    assert "1 films declared for validation are too few" in out
    assert "229 films name no patient" in out


def test_sample_draws_the_films_that_were_asked_for(openmed, tmp_path):
    code, out, _ = openmed("data", "sample", tmp_path / "drawn", "--films", 40)
    assert (code, out) == (0, f"{tmp_path / 'drawn'}: 40 phantoms\n")
    table = pd.read_csv(tmp_path / "drawn/films.csv")
    assert len(table) == 40
    assert read_film(tmp_path / "drawn" / table["path"][0]).shape == (192, 192)
    refused(openmed("data", "sample", tmp_path / "drawn", "--films", 40), "is not empty")


def test_predict_prints_one_object_a_line_with_the_librarys_probability(openmed, vit, films):
    paths = films["file"].head(35)
    code, out, err = openmed("predict", vit, *paths, "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    threshold = read_spec(vit)[0].threshold
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert {(row["threshold"], row["model"]) for row in rows} == {(threshold, str(vit))}
    more = {"probabilities", "thresholds", "refer", "reason", "model", "warning"}
    assert set(rows[0]) == {"path", "probability", "label", "threshold", *more}
    spec = read_spec(vit)[0]
    abstention, distances = spec.abstention, load_model(vit).assess(squares_of(vit, paths))[1]
    unlike = dict(zip(map(str, paths), distances > spec.novelty.limit, strict=True))
    for row in rows:
        kept = [
            p >= low
            for p, low in zip((1 - row["probability"], row["probability"]), abstention.lowest, strict=True)
        ]
        called = spec.class_names.index(row["label"])
        unclear = sum(kept) != 1 or not kept[called]
        assert row["refer"] == (unclear or unlike[row["path"]])
        assert (row["reason"] == NO_CLASS) == (unclear and not unlike[row["path"]])
        assert (row["reason"] is None) == (not row["refer"])
    expected = probability(vit, paths)
    assert [row["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)
    for row in rows:
        assert row["label"] == ("PNEUMONIA" if row["probability"] >= threshold else "NORMAL")


def squares_of(model, paths):
    size = read_spec(model)[0].image_size_px
    return np.stack([resize_film(read_film(path), size) for path in paths])


def test_predict_refers_what_is_unlike_the_films_it_learnt_from_and_says_why(openmed, vit, films, tmp_path):
    film = read_film(films["file"].iloc[0])
    noise = np.random.default_rng(0).integers(0, 256, film.shape, dtype=np.uint8)
    changed = {INVERTED: 255 - film, ROTATED: np.rot90(film), UNLIKE: noise}
    for reason, each in changed.items():
        cv2.imwrite(str(tmp_path / "film.png"), each)
        row = json.loads(openmed("predict", vit, tmp_path / "film.png", "--json")[1])
        assert (row["refer"], row["reason"]) == (True, reason)
        options = ["--tta", "--threshold", "0.5", "--json"]
        row = json.loads(openmed("predict", vit, tmp_path / "film.png", *options)[1])
        assert (row["refer"], row["reason"]) == (True, reason)


@pytest.mark.parametrize(
    ("film", "reason"),
    [
        (np.zeros((80, 80), np.uint8), "the film is blank"),
        (np.arange(600, dtype=np.uint8).reshape(20, 30), "only 30 x 20 pixels"),
    ],
)
def test_films_that_validate_would_quarantine_are_refused(openmed, vit, tmp_path, film, reason):
    cv2.imwrite(str(tmp_path / "film.png"), film)
    refused(openmed("predict", vit, tmp_path / "film.png"), f"film.png cannot be used: {reason}")
    command = ("explain", vit, tmp_path / "film.png", "--out", tmp_path / "heat.jpg")
    refused(openmed(*command), f"film.png cannot be used: {reason}")


def test_evaluate_counts_the_films_referred_by_reason(openmed, vit, films, tmp_path):
    for label, group in films.groupby("label"):
        folder = tmp_path / "films" / ("NORMAL", "PNEUMONIA")[label]
        folder.mkdir(parents=True)
        for number, path in enumerate(group["file"].head(8)):
            film = read_film(path)
            cv2.imwrite(str(folder / f"patient{label}{number}.png"), 255 - film if number < 3 else film)
        cv2.imwrite(str(folder / "blank.png"), np.full((64, 64), 7, np.uint8))
    result = json.loads(openmed("evaluate", vit, tmp_path / "films", "--json")[1])
    rows = [
        json.loads(openmed("predict", vit, path, "--json")[1])
        for path in sorted((tmp_path / "films").rglob("patient*.png"))
    ]
    assert (result["n"], result["unusable"]) == (16, 2) and result["referred"][INVERTED] == 6
    for reason, count in result["referred"].items():
        assert count == sum(row["reason"] == reason for row in rows)


def test_predict_tells_a_person_label_probability_and_threshold(openmed, vit, films):
    path = films["file"].iloc[0]
    (row,) = [json.loads(openmed("predict", vit, path, "--json")[1])]
    shown = f"{path}  {row['label']}  {row['probability']:.3f}  (threshold {row['threshold']:.3f})"
    shown += f"  refer to a radiologist: {row['reason']}" * row["refer"]
    assert openmed("predict", vit, path)[1] == f"{shown}\n"


def test_a_model_without_a_threshold_calls_the_most_probable_class(openmed, toy, films):
    model = toy / "artifacts/train/vit/model"
    _, out, _ = openmed("predict", model, *films["file"].head(6), "--json")
    for row in map(json.loads, out.splitlines()):
        assert row["threshold"] is None
        assert row["label"] == ("PNEUMONIA" if row["probability"] > 0.5 else "NORMAL")
    assert "threshold" not in openmed("predict", model, films["file"].iloc[0])[1]


def test_predict_averages_over_models_of_several_input_sizes(openmed, toy, vit, films):
    others = [toy / f"artifacts/evaluate/{name}/model" for name in ("resnet50", "inceptionv3")]
    paths, options = films["file"].head(5), [part for other in others for part in ("--with", other)]
    code, out, err = openmed("predict", vit, *paths, *options, "--threshold", 0.4, "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    expected = np.mean([probability(model, paths) for model in (vit, *others)], axis=0)
    assert [row["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert {(row["threshold"], row["model"]) for row in rows} == {(0.4, " + ".join(map(str, (vit, *others))))}
    assert [row["label"] for row in rows] == [("NORMAL", "PNEUMONIA")[int(p >= 0.4)] for p in expected]


def test_predict_averages_over_views(openmed, vit, films):
    from openmed.inference.ensemble import affine_views

    path = films["file"].iloc[0]
    model = load_model(vit)
    square = resize_film(read_film(path), model.spec.image_size_px)[None]
    expected = np.mean([model.predict(view)[0, 1] for view in affine_views(square)])
    row = json.loads(openmed("predict", vit, path, "--tta", "--threshold", 0.5, "--json")[1])
    assert row["probability"] == pytest.approx(expected, abs=1e-5)
    assert row["model"] == str(vit)


def test_evaluate_takes_copies_once_and_asks_who_the_patients_are(openmed, vit, films, tmp_path):
    chosen = films.groupby("label").head(6)
    for place, (file, label) in enumerate(zip(chosen["file"], chosen["label"], strict=True)):
        for folder in ("set", "set/set"):
            target = tmp_path / folder / ("NORMAL", "PNEUMONIA")[label] / f"patient1_{place}{file.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    arguments = ("evaluate", vit, tmp_path / "set")
    refused(
        openmed(*arguments),
        "1 in 12 of 12 films, one of them in 12 by file names by the pattern of patient<P>",
    )
    for patients_from, patients in (("name", 1), ("film", 12)):
        code, out, _ = openmed(*arguments, "--patients-from", patients_from)
        assert code == 0 and out.startswith(f"12 films of {patients} patients")
        assert "12 of 24 films are copies, taken once" in out
    code, _, err = openmed(*arguments, "--patients-from", "guess")
    assert code == 2 and "'guess'" in err


def test_a_mean_without_a_threshold_of_its_own_is_refused(openmed, toy, vit, films, judged):
    other = toy / "artifacts/evaluate/resnet50/model"
    for options in (["--tta"], ["--with", other]):
        for arguments in (["predict", vit, films["file"].iloc[0]], ["evaluate", vit, judged[0]]):
            refused(openmed(*arguments, *options), "has no threshold of its own: choose one with")


def test_a_given_threshold_takes_the_place_of_the_models(openmed, vit, films):
    path = films["file"].iloc[0]
    rows = [json.loads(openmed("predict", vit, path, "--threshold", t, "--json")[1]) for t in (0, 1)]
    assert [(row["threshold"], row["label"]) for row in rows] == [(0, "PNEUMONIA"), (1, "NORMAL")]
    refused(openmed("predict", vit, path, "--threshold", 1.5), "between 0 and 1")


def test_a_threshold_is_chosen_on_the_means_and_evaluate_judges_at_it(openmed, toy, vit, films, judged):
    from openmed.fitted.operating_point import choose_threshold

    other = toy / "artifacts/evaluate/resnet50/model"
    scores = (probability(vit, films["file"]) + probability(other, films["file"])) / 2
    options = [judged[0], "--with", other]
    code, out, _ = openmed("threshold", vit, *options, "--target-sensitivity", 0.8, "--json")
    result = json.loads(out)
    assert (code, result["n"], result["unusable"]) == (0, len(films), 1)
    assert result["threshold"] == pytest.approx(choose_threshold(films["label"], scores, 0.8), abs=1e-6)
    shown = openmed("threshold", vit, *options, "--target-sensitivity", 0.8)[1].split()
    assert shown[0] == "--threshold"
    judgement = json.loads(openmed("evaluate", vit, *options, *shown, "--json")[1])
    assert judgement["sensitivity"] >= 0.8
    assert judgement["auc"] == pytest.approx(roc_auc_score(films["label"], scores), abs=1e-3)
    assert judgement["runtime"] == ["onnxruntime", "onnxruntime"]


def test_a_folder_without_an_export_is_judged_by_pytorch(openmed, toy, judged):
    model = toy / "artifacts/train/vit/model"
    result = json.loads(openmed("evaluate", model, judged[0], "--threshold", 0.5, "--json")[1])
    assert result["runtime"] == ["pytorch cpu"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"GIF89a", "is not a JPEG, PNG, TIFF or DICOM image"), (b"", "is empty"), (None, "No such")],
)
def test_a_bad_image_is_one_sentence_and_exit_code_2(openmed, vit, tmp_path, content, problem):
    if content is not None:
        (tmp_path / "film.png").write_bytes(content)
    refused(openmed("predict", vit, tmp_path / "film.png"), problem)
    refused(openmed("explain", vit, tmp_path / "film.png", "--out", tmp_path / "x.jpg"), problem)


def test_a_missing_model_is_one_sentence_and_exit_code_2(openmed, films, tmp_path):
    refused(openmed("predict", tmp_path / "none", films["file"].iloc[0]), "is no model folder")


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx"])
def test_a_changed_model_ends_with_exit_code_3(openmed, vit, films, tmp_path, name):
    shutil.copytree(vit, tmp_path / "model")
    content = bytearray((tmp_path / "model" / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / "model" / name).write_bytes(content)
    refused(openmed("predict", tmp_path / "model", films["file"].iloc[0]), name, 3)


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_shows_the_traceback_too(openmed, tmp_path, place):
    arguments = ["predict", tmp_path / "none", tmp_path / "film.png"]
    arguments.insert(0 if place == "first" else len(arguments), "--debug")
    code, _, err = openmed(*arguments)
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("openmed: ")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_evaluate_agrees_with_scikit_learn_on_the_same_films(openmed, vit, films, judged, tmp_path, form):
    folder, scores = judged
    source = folder
    if form == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "films"), "zip", folder))
    code, out, _ = openmed("evaluate", vit, source, "--json")
    assert code == 0
    result = json.loads(out)
    wanted = {"n", "auc", "sensitivity", "specificity", "accuracy", "threshold", "intervals"}
    assert wanted <= set(result)
    assert (result["n"], result["unusable"], result["model"]) == (len(films), 1, str(vit))
    tn, fp, fn, tp = confusion_matrix(films["label"], scores >= result["threshold"]).ravel()
    assert result["counts"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    assert result["auc"] == pytest.approx(roc_auc_score(films["label"], scores))
    assert result["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert result["specificity"] == pytest.approx(tn / (tn + fp))
    assert result["accuracy"] == pytest.approx((tp + tn) / len(films))
    assert result["threshold"] == read_spec(vit)[0].threshold
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        low, high = result["intervals"][name]
        assert low <= result[name] <= high


def test_evaluate_tells_a_person_the_intervals_and_the_unusable_films(openmed, vit, judged):
    _, out, _ = openmed("evaluate", vit, judged[0])
    assert "1 films could not be used" in out
    assert {line.split()[0] for line in out.splitlines()[1:5]} == {
        "auc",
        "sensitivity",
        "specificity",
        "accuracy",
    }


def test_films_of_one_class_leave_the_other_numbers_empty(openmed, vit, judged, tmp_path):
    shutil.copytree(judged[0] / "PNEUMONIA", tmp_path / "sick/PNEUMONIA")
    _, out, _ = openmed("evaluate", vit, tmp_path / "sick", "--json")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["auc"] is result["specificity"] is None
    assert result["sensitivity"] is not None
    assert "not computable" in openmed("evaluate", vit, tmp_path / "sick")[1]


def test_evaluate_refuses_films_or_a_model_that_cannot_be_judged(openmed, toy, vit, judged, tmp_path):
    (tmp_path / "bad/NORMAL").mkdir(parents=True)
    (tmp_path / "bad/NORMAL/film.png").write_bytes(b"no film")
    refused(openmed("evaluate", vit, tmp_path / "bad"), "none of the 1 films")
    refused(openmed("evaluate", vit, tmp_path / "nowhere"), "does not exist")
    refused(openmed("evaluate", toy / "artifacts/train/vit/model", judged[0]), "no frozen threshold")


@pytest.mark.parametrize(("architecture", "pictures"), [("vit", 2), ("resnet50", 1)])
def test_explain_writes_pictures_that_decode(openmed, toy, films, tmp_path, architecture, pictures):
    model = toy / "artifacts/evaluate" / architecture / "model"
    code, out, _ = openmed("explain", model, films["file"].iloc[0], "--out", tmp_path / "x.jpg")
    assert code == 0
    written = [Path(line) for line in out.splitlines()]
    assert written[0] == tmp_path / "x.jpg"
    assert sorted(written) == sorted(tmp_path.glob("*.jpg"))
    assert len(written) == pictures
    for path in written:
        assert path.read_bytes().startswith(b"\xff\xd8")
        picture = cv2.imread(str(path))
        assert picture.ndim == 3
        assert picture.std() > 0


def test_explain_refuses_another_format(openmed, vit, films, tmp_path):
    result = openmed("explain", vit, films["file"].iloc[0], "--out", tmp_path / "x.txt")
    refused(result, "is not a .jpg file name")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_explain_never_writes_over_the_film(openmed, vit, films, tmp_path, link):
    film, out = tmp_path / "film.jpg", tmp_path / ("out.jpg" if link else "film.jpg")
    shutil.copy(films["file"].iloc[0], film)
    if link:
        link(film, out)
    before = film.read_bytes()
    refused(openmed("explain", vit, film, "--out", out), "which is read")
    assert film.read_bytes() == before


def test_explain_never_writes_a_second_map_over_the_film(openmed, vit, films, tmp_path):
    shutil.copy(films["file"].iloc[0], tmp_path / "film.jpg")
    named = openmed("explain", vit, tmp_path / "film.jpg", "--out", tmp_path / "map.jpg")[1].splitlines()[1]
    film = tmp_path / Path(named).name.replace("map", "heat")
    shutil.copy(films["file"].iloc[0], film)
    before = film.read_bytes()
    refused(openmed("explain", vit, film, "--out", tmp_path / "heat.jpg"), "which is read")
    assert film.read_bytes() == before and not (tmp_path / "heat.jpg").exists()


def test_registered_versions_are_listed_for_people_and_programs(openmed, registered):
    code, out, _ = openmed("registry", "list", "--json")
    (version,) = json.loads(out)
    assert code == 0
    assert (version["version"], version["architecture"]) == ("1", "resnet50")
    assert version["aliases"] == ["challenger"]
    head, row = openmed("registry", "list")[1].splitlines()
    assert head.split()[:3] == ["version", "architecture", "verdict"]
    assert row.split()[:2] == ["1", "resnet50"]
    assert "challenger" in row


def test_an_empty_registry_lists_nothing(openmed, store):
    assert json.loads(openmed("registry", "list", "--json")[1]) == []
    assert len(openmed("registry", "list")[1].splitlines()) == 1
    address = "models:/openmed-cxr@champion"
    refused(openmed("predict", address, "film.png"), "register and promote a model first")


def test_a_version_is_promoted_used_and_rolled_back(openmed, store, tmp_path):
    for number in (1, 2):
        workspace = make_workspace(tmp_path / str(number), seed=number, films_seed=number)
        register(workspace, f"run-{number}")
        done = openmed("registry", "promote", number, "--by", "clinical=Dr Adams", "--comment", "looks right")
        assert done[:2] == (0, f"version {number} is the champion, approved by Dr Adams (clinical)\n"), done[
            2
        ]
    film = next((tmp_path / "2/data/films").iterdir())
    _, out, _ = openmed("predict", "models:/openmed-cxr@champion", film, "--json")
    model = tmp_path / "2/artifacts/evaluate/resnet50/model"
    assert json.loads(out)["probability"] == pytest.approx(float(probability(model, [film])[0]), abs=1e-5)
    done = openmed("registry", "rollback", "--reason", "too many alarms", "--by", "Dr Brown")
    assert done[:2] == (0, "version 1 is the champion again\n")
    assert ledger.champion() == "1"
    refused(openmed("registry", "rollback", "--reason", "again", "--by", "Dr Brown"), "no previous champion")
    refused(openmed("registry", "promote", "9", "--by", "clinical=Dr Brown"), "no version 9")


def test_up_and_demo_hand_their_options_on(openmed, project, monkeypatch):
    from pipeline.local import demo, services

    calls = []
    monkeypatch.setenv("OPENMED_HOME", str(project / "home"))
    monkeypatch.setattr(services, "up", lambda *places, **options: calls.append((places, options)))
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: calls.append(arguments))
    assert openmed("up", "--airflow-port", 0, "--gpu-slots", 2)[0] == 0
    assert openmed("demo", "--data", "films.zip", "--limit", 60, "--patients-from", "name")[0] == 0
    places = (project, project / "home")
    assert calls[0] == (places, {"airflow_port": 0, "mlflow_port": 5000, "gpu_slots": 2})
    assert calls[1] == (*places, Path("films.zip"), 60, "name")
