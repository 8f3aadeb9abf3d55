"""The stages as they run: what they write, what they refuse, that they can be repeated."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.cache.film_cache import FilmCache
from openmed.errors import BadInput, IntegrityError
from openmed.files import sha256_file
from openmed.films.images import read_film, resize_film
from openmed.fitted.calibration import fit_calibration
from openmed.inference.checkpoint import load_model, read_spec
from openmed.metrics.calibration_error import expected_calibration_error
from pipeline import ledger
from pipeline.promotion import actions as promotion
from pipeline.settings.params import load_params
from tests.conftest import FILMS, forget_hashes, run_stages, write_params
from tests.pipeline.conftest import register

ARCHITECTURES = ("resnet50", "vit", "inceptionv3")
LOGITS = ["logit_NORMAL", "logit_PNEUMONIA"]


def read(folder, path):
    return json.loads((folder / "artifacts" / path).read_text())


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_stages_write_exactly_what_dvc_yaml_declares(toy):
    from pipeline.tools.dvc_graph import load_graph

    written = {f"artifacts/{name}" for name in files(toy / "artifacts")}
    declared = {out for stage in load_graph(toy / "dvc.yaml").values() for out in stage.outs}
    covered = {name for name in written if any(name == out or name.startswith(out + "/") for out in declared)}
    assert written == covered
    assert all((toy / out).exists() for out in declared)


def test_the_manifest_measures_each_film(toy):
    manifest = pd.read_parquet(toy / "artifacts/validate/manifest.parquet")
    assert len(manifest) == FILMS
    assert manifest["id"].is_unique
    row = manifest.iloc[5]
    film = read_film(toy / "data" / row["path"])
    assert (row["height"], row["width"]) == film.shape
    assert row["mean"] == pytest.approx(film.mean())
    assert row["std"] == pytest.approx(film.std())
    assert row["sha256"] == sha256_file(toy / "data" / row["path"])


def test_no_patient_is_in_two_splits(toy):
    split = pd.read_parquet(toy / "artifacts/split/split.parquet")
    assert split.groupby("patient")["split"].nunique().max() == 1


def test_the_planted_near_duplicates_stay_together(toy):
    manifest = pd.read_parquet(toy / "artifacts/validate/manifest.parquet")
    split = pd.read_parquet(toy / "artifacts/split/split.parquet").merge(manifest[["id", "sha256"]], on="id")
    copies = split[split["sha256"].duplicated(keep=False)]
    assert len(copies) >= 2
    assert copies.groupby("sha256")["split"].nunique().max() == 1
    assert read(toy, "split/summary.json")["pairs_between_patients"] >= 1


def test_the_firewall_records_every_check_and_what_was_planted(toy):
    findings = {item["check"]: item for item in read(toy, "split/leakage.json")}
    copies = findings.pop("copies of a film under several patients")
    assert copies["outcome"] == "repaired"
    assert copies["found"] == read(toy, "split/summary.json")["pairs_between_patients"] == 2
    assert len(copies["films"]) == 4
    assert {item["outcome"] for item in findings.values()} == {"clean"}
    assert len(findings) == 6


def relabel_a_copy(folder):
    """Stores a normal film once more: compressed anew, under another patient and the other label."""
    forget_hashes(folder)
    films = pd.read_csv(folder / "data/films.csv", dtype=str, keep_default_na=False)
    source = films[films["label"] == "NORMAL"].iloc[4]
    film = read_film(folder / "data" / source["path"])
    path = "films/PNEUMONIA/patient9999_1.jpeg"
    cv2.imwrite(str(folder / "data" / path), cv2.add(film, np.full_like(film, 1)))
    films.loc[len(films)] = [path, "PNEUMONIA", "patient9999", ""]
    films.to_csv(folder / "data/films.csv", index=False)
    return [source["path"], path]


def test_a_film_under_two_labels_is_left_out_of_everything(workspace, params):
    paths = relabel_a_copy(workspace)
    params["split"]["max_conflicting_share"] = 0.05
    write_params(workspace, params)
    run_stages(workspace, ["validate", "split", "preprocess", "resample"])
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    ids = set(manifest.loc[manifest["path"].isin(paths), "id"])
    split = pd.read_parquet(workspace / "artifacts/split/split.parquet")
    assert set(split.loc[split["id"].isin(ids), "split"]) == {"left_out"}
    found = read(workspace, "split/leakage.json")[1]
    assert (found["check"], found["outcome"]) == ("one film under two labels", "repaired")
    assert ids <= set(found["films"])
    assert not ids & set(pd.read_parquet(workspace / "artifacts/resample/rows.parquet")["id"])


def test_too_many_films_under_two_labels_stop_the_run(workspace, params):
    relabel_a_copy(workspace)
    params["split"]["max_conflicting_share"] = 0
    write_params(workspace, params)
    with pytest.raises(BadInput, match="are the same film under two labels, more than"):
        run_stages(workspace, ["validate", "split"])


def test_a_declared_validation_set_of_one_film_is_drawn_anew(workspace):
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    films.loc[0, "split"] = "validation"
    films.to_csv(workspace / "data/films.csv", index=False)
    run_stages(workspace, ["validate", "split"])
    found = read(workspace, "split/leakage.json")[3]
    assert (found["outcome"], found["found"]) == ("repaired", 1)
    assert read(workspace, "split/summary.json")["splits"]["validation"]["films"] > 5


def test_training_rows_of_another_split_are_refused_before_training(workspace):
    split = pd.read_parquet(workspace / "artifacts/split/split.parquet")
    rows = pd.read_parquet(workspace / "artifacts/resample/rows.parquet")
    split.loc[split["id"] == rows["id"].iloc[0], "split"] = "test"
    split.to_parquet(workspace / "artifacts/split/split.parquet")
    with pytest.raises(BadInput, match=f"outside the training split, film {rows['id'].iloc[0]}"):
        run_stages(workspace, ["train@vit"])


def test_the_cache_holds_the_films_at_each_size(toy):
    manifest = pd.read_parquet(toy / "artifacts/validate/manifest.parquet")
    for size in (48, 75):
        cache = FilmCache(toy / "artifacts/preprocess", size)
        film = manifest.iloc[7]
        expected = resize_film(read_film(toy / "data" / film["path"]), size)
        assert np.array_equal(cache.films[cache.rows([film["id"]])[0]], expected)


def test_training_rows_are_balanced_and_come_from_the_training_split_alone(toy):
    rows = pd.read_parquet(toy / "artifacts/resample/rows.parquet")
    split = pd.read_parquet(toy / "artifacts/split/split.parquet").set_index("id")
    assert set(split.loc[rows["id"], "split"]) == {"train"}
    assert rows["label"].value_counts().nunique() == 1
    summary = read(toy, "resample/summary.json")
    assert summary["training_rows_verified"] == len(rows)
    assert summary["before"]["NORMAL"] < summary["before"]["PNEUMONIA"]
    assert summary["after"]["NORMAL"] == summary["after"]["PNEUMONIA"] == len(rows) // 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_predictions_come_from_the_stored_model(toy, name):
    predictions = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet")
    model = load_model(toy / f"artifacts/evaluate/{name}/model")
    cache = FilmCache(toy / "artifacts/preprocess", model.spec.image_size_px)
    expected = model.predict(cache.films[cache.rows(predictions["id"])])
    assert np.allclose(predictions["probability_PNEUMONIA"], expected[:, 1], atol=1e-5)
    assert np.allclose(predictions["score"], predictions["probability_PNEUMONIA"])
    assert set(predictions["split"]) == {"validation", "calibration", "test"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_finished_model_is_exported_and_decides_the_same(toy, name):
    from openmed.inference.session import load_exported

    exported = load_exported(toy / f"artifacts/evaluate/{name}/model")
    predictions = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet")
    cache = FilmCache(toy / "artifacts/preprocess", exported.spec.image_size_px)
    scores = exported.predict(cache.films[cache.rows(predictions["id"])])[:, 1]
    assert np.allclose(predictions["score"], scores, atol=1e-4)
    threshold = exported.spec.threshold
    assert ((predictions["score"] >= threshold) == (scores >= threshold)).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_threshold_reaches_the_target_on_calibration_films_and_is_frozen(toy, name):
    metrics = read(toy, f"evaluate/{name}/metrics.json")
    predictions = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet")
    calibration = predictions[(predictions["split"] == "calibration") & (predictions["label"] == 1)]
    assert (calibration["score"] >= metrics["threshold"]).mean() >= metrics["target_sensitivity"]
    assert load_model(toy / f"artifacts/evaluate/{name}/model").spec.threshold == metrics["threshold"]
    assert load_model(toy / f"artifacts/train/{name}/model").spec.threshold is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_frozen_calibration_is_one_of_the_calibration_films_and_undoes_the_resampling(toy, name):
    films = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet")
    own = films[films["split"] == "calibration"]
    counts = read(toy, "resample/summary.json")
    before, after = (np.array(list(counts[when].values()), float) for when in ("before", "after"))
    spec, _ = read_spec(toy / f"artifacts/evaluate/{name}/model")
    np.testing.assert_allclose(
        spec.calibration.prior_correction, np.log(before / before.sum()) - np.log(after / after.sum())
    )
    expected = fit_calibration(
        "platt", own[LOGITS].to_numpy(), own["label"], spec.calibration.prior_correction
    )
    # Equal but for the rounding of a search on other pieces of memory.
    assert (spec.calibration.method, spec.calibration.films) == ("platt", len(own))
    np.testing.assert_allclose(spec.calibration.bias, expected.bias, atol=1e-6)
    np.testing.assert_allclose(spec.calibration.scale, expected.scale, atol=1e-6)
    assert read_spec(toy / f"artifacts/train/{name}/model")[0].calibration is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_calibration_is_reported_before_and_after(toy, name):
    from scipy.special import softmax
    from sklearn.metrics import brier_score_loss, log_loss

    found = read(toy, f"evaluate/{name}/metrics.json")["reliability"]
    films = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet")
    test, has = films[films["split"] == "test"], films.loc[films["split"] == "test", "label"]
    spec, _ = read_spec(toy / f"artifacts/evaluate/{name}/model")
    logits = test[LOGITS].to_numpy().astype(float)
    scores = {
        "softmax": softmax(logits, axis=1)[:, 1],
        "prior_corrected": softmax(logits + spec.calibration.prior_correction, axis=1)[:, 1],
        "calibrated": test["score"].to_numpy().astype(float),
    }
    for step, values in scores.items():
        assert found[step]["brier"] == pytest.approx(brier_score_loss(has, values), rel=1e-5)
        assert found[step]["log_loss"] == pytest.approx(log_loss(has, values), rel=1e-5)
        assert found[step]["ece"] == pytest.approx(expected_calibration_error(has, values), abs=1e-5)
    assert (found["method"], found["films"]) == ("platt", (films["split"] == "calibration").sum())
    folder = toy / f"artifacts/evaluate/{name}"
    for file, step in (("reliability", "calibrated"), ("reliability_softmax", "softmax")):
        curve = pd.read_csv(folder / f"{file}.csv")
        assert curve["films"].sum() == len(test)
        assert np.average(curve["predicted"], weights=curve["films"]) == pytest.approx(scores[step].mean())
    page = (toy / f"artifacts/explain/{name}/report.html").read_text()
    assert all(f"{item['log_loss']:.3f}" in page for item in (found[step] for step in scores))


@pytest.mark.parametrize("method", ["temperature", "none"])
def test_another_calibration_gives_other_probabilities_and_chooses_the_same_films(
    toy, workspace, params, method
):
    params["evaluate"]["calibration"] = method
    write_params(workspace, params)
    run_stages(workspace, ["evaluate@vit"])
    spec, _ = read_spec(workspace / "artifacts/evaluate/vit/model")
    assert spec.calibration.method == method
    before, after = (
        pd.read_parquet(folder / "artifacts/evaluate/vit/predictions.parquet").query("split == 'calibration'")
        for folder in (toy, workspace)
    )
    assert np.abs(before["score"] - after["score"]).max() > 0.001
    old = read(toy, "evaluate/vit/metrics.json")["threshold"]
    np.testing.assert_array_equal(before["score"] >= old, after["score"] >= spec.threshold)


def test_isotonic_calibration_on_few_films_is_refused_with_the_remedy(workspace, params):
    params["evaluate"]["calibration"] = "isotonic"
    write_params(workspace, params)
    with pytest.raises(BadInput, match=r"needs 50 calibration films of each .* evaluate\.calibration"):
        run_stages(workspace, ["evaluate@vit"])


def test_training_rows_without_a_class_are_refused_before_training(workspace, params):
    split = pd.read_parquet(workspace / "artifacts/split/split.parquet")
    split.loc[(split["label"] == 1) & (split["split"] == "train"), "split"] = "left_out"
    split.to_parquet(workspace / "artifacts/split/split.parquet")
    params["resample"]["strategy"] = "none"
    write_params(workspace, params)
    with pytest.raises(BadInput, match="each class needs training films"):
        run_stages(workspace, ["resample"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_test_metrics_are_those_of_scikit_learn(toy, name):
    from sklearn.metrics import confusion_matrix, roc_auc_score

    test = read(toy, f"evaluate/{name}/metrics.json")["test"]
    threshold = read(toy, f"evaluate/{name}/metrics.json")["threshold"]
    films = pd.read_parquet(toy / f"artifacts/evaluate/{name}/predictions.parquet").query("split == 'test'")
    tn, fp, fn, tp = confusion_matrix(films["label"], films["score"] >= threshold).ravel()
    assert (test["tn"], test["fp"], test["fn"], test["tp"]) == (tn, fp, fn, tp)
    assert test["auc"]["value"] == pytest.approx(roc_auc_score(films["label"], films["score"]))
    assert test["auc"]["low"] <= test["auc"]["value"] <= test["auc"]["high"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_report_stands_alone_and_is_small(toy, name):
    page = (toy / f"artifacts/explain/{name}/report.html").read_text()
    assert len(page.encode()) < 5_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "not a diagnosis" in page
    assert all(item["detail"] in page for item in read(toy, "split/leakage.json"))
    assert read(toy, f"evaluate/{name}/gates.json")["verdict"] in page
    assert read(toy, f"evaluate/{name}/metrics.json")["model"]["weights_sha256"] in page


MEASURED = [
    *("map_drop", "random_drop", "deletion_area", "random_deletion_area"),
    *("insertion_area", "random_insertion_area"),
    *("randomised_correlation", "repeat_difference", "perturbed_correlation"),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_maps_of_each_method_are_checked_and_judged(toy, name):
    found = read(toy, f"explain/{name}/explain.json")
    assert next(iter(found["faithfulness"])) == found["primary_method"]
    page = (toy / f"artifacts/explain/{name}/report.html").read_text()
    for method in found["faithfulness"].values():
        assert method["trusted"] == (method["failed"] == [])
        if method["films"] >= 8:
            assert all(np.isfinite(method[value]) for value in MEASURED)
        else:
            assert not method["trusted"]
            assert "too few" in method["reason"]
    primary = found["faithfulness"][found["primary_method"]]
    assert ("Do not rely on these heat maps" in page) == (not primary["trusted"])


@pytest.mark.parametrize("failed", [[], ["randomisation"], ["perturbation", "deletion"]])
def test_the_report_says_which_check_of_the_maps_failed(workspace, failed):
    from pipeline.report.page import build_report

    content = read(workspace, "explain/vit/explain.json")
    numbers = {value: 10 + index / 8 for index, value in enumerate(MEASURED)}
    reason = "the planted reason"
    planted = {"films": 12, "failed": failed, "trusted": not failed, "reason": reason} | numbers
    content["faithfulness"] = {"gradient_attention": planted}
    spec, _ = read_spec(workspace / "artifacts/evaluate/vit/model")
    page = build_report(load_params(), "vit", spec, content)
    assert ("<strong>Do not rely on these heat maps:</strong> the planted reason." in page) == bool(failed)
    assert ("The maps passed their check: the planted reason." in page) == (not failed)
    table = page[page.index("Check of the maps") :]
    table = table[: table.index("</table>")]
    assert table.count("<td>failed</td>") == len(failed)
    assert table.count("<td>passed</td>") == 6 - len(failed)
    assert all(f"{number:.3f}" in table for number in numbers.values())
    assert "at most 0.500" in table and "at least 0.700" in table


def test_no_patient_is_named_outside_the_tables_that_need_it(toy):
    patients = pd.read_csv(toy / "data/films.csv", dtype=str)["patient"].unique()
    shown = [path for path in (toy / "artifacts").rglob("*") if path.suffix in (".html", ".json", ".csv")]
    assert shown
    text = "".join(path.read_text() for path in shown)
    assert not [patient for patient in patients if patient in text]


def test_the_expectations_page_stands_alone(toy):
    page = (toy / "artifacts/validate/expectations.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert read(toy, "validate/expectations.json")["success"] is True


def test_the_same_settings_give_the_same_bytes_again(toy, workspace):
    before = {name: sha256_file(toy / name) for name in files(toy)}
    names = [
        "validate",
        "split",
        "preprocess",
        "resample",
        "train@vit",
        "evaluate@vit",
        "external@vit",
        "explain@vit",
    ]
    run_stages(workspace, names)
    assert {name: sha256_file(workspace / name) for name in files(workspace)} == before


def test_a_class_without_films_stops_the_run(workspace):
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    films[films["label"] == "NORMAL"].to_csv(workspace / "data/films.csv", index=False)
    with pytest.raises(BadInput, match="Every class has films"):
        run_stages(workspace, ["validate"])
    assert "Every class has films" in (workspace / "artifacts/validate/expectations.html").read_text()


def test_too_many_unusable_films_stop_the_run_and_name_them(workspace):
    forget_hashes(workspace)
    paths = sorted((workspace / "data/films").rglob("*.jpeg"))[:12]
    for path in paths:
        path.write_bytes(b"not a film")
    with pytest.raises(BadInput, match="Few films are unusable"):
        run_stages(workspace, ["validate"])
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    bad = manifest[manifest["status"] == "quarantined"]
    assert len(bad) == len(paths)
    assert bad["reason"].str.len().min() > 0


def test_a_few_unusable_films_are_quarantined_and_the_run_goes_on(workspace):
    forget_hashes(workspace)
    path = sorted((workspace / "data/films").rglob("*.jpeg"))[0]
    path.write_bytes(b"")
    run_stages(workspace, ["validate", "split", "preprocess"])
    assert read(workspace, "validate/summary.json")["quarantined"] == 1
    ids = pd.read_parquet(workspace / "artifacts/preprocess/films.parquet")["id"]
    assert len(ids) == FILMS - 1


def test_a_byte_changed_after_validation_is_found_before_use(workspace):
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    path = workspace / "data" / manifest["path"].iloc[3]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="was changed after it was validated"):
        run_stages(workspace, ["preprocess"])


def test_an_unknown_architecture_is_refused(workspace):
    with pytest.raises(BadInput, match="vgg"):
        run_stages(workspace, ["train@vgg"])


def test_cuda_that_is_not_there_is_refused_and_never_replaced(workspace, params):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    params["run"]["device"] = "cuda"
    write_params(workspace, params)
    with pytest.raises(BadInput, match="no usable GPU"):
        run_stages(workspace, ["train@vit"])


def test_a_model_with_shuffled_training_labels_is_refused_and_the_champion_stays(workspace, store, params):
    params["architectures"] = ["resnet50"]
    params["evaluate"]["floors"] = {"auc": 0.5, "sensitivity": 0.0, "specificity": 0.0}
    write_params(workspace, params)
    (workspace / "data.dvc").write_text("outs:\n- {md5: 0123456789abcdef0123456789abcdef.dir, path: data}\n")
    run_stages(workspace, ["evaluate@resnet50"])
    good = register(workspace, "good").version
    promotion.promote(good, approved_by={"clinical": "Dr Adams"}, comment="", expected_champion=None)

    rows = pd.read_parquet(workspace / "artifacts/resample/rows.parquet")
    films = rows.drop_duplicates("id").set_index("id")["label"]
    shuffled = pd.Series(np.random.default_rng(3).permutation(films), films.index)
    rows["label"] = shuffled.loc[rows["id"]].to_numpy()
    rows.to_parquet(workspace / "artifacts/resample/rows.parquet")
    run_stages(workspace, ["train@resnet50", "evaluate@resnet50", "external@resnet50", "explain@resnet50"])
    assert read(workspace, "evaluate/resnet50/gates.json")["verdict"] != "PASS"
    bad = register(workspace, "bad").version
    assert promotion.gate(bad).verdict != "PASS"
    with pytest.raises(BadInput, match="cannot be promoted"):
        promotion.promote(bad, approved_by={"clinical": "Dr Adams"}, comment="", expected_champion=good)
    assert ledger.champion() == good


def test_a_stage_of_its_own_ends_with_a_sentence_and_exit_code_2(workspace):
    (workspace / "data/films.csv").write_text("path,label\n")
    done = subprocess.run([sys.executable, "-m", "pipeline", "validate"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "openmed: data/films.csv must have the columns path, label, patient, split"
    )
    assert "Traceback" not in done.stderr
