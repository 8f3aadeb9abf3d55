"""The stage `external`, and the command that adds a set."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from openmed.archives import film_bytes, place_of
from openmed.errors import BadInput, IntegrityError
from openmed.films.images import decode_squares
from openmed.inference.checkpoint import load_model
from pipeline.promotion import actions as promotion
from pipeline.tools.dvc_graph import load_graph
from pipeline.versioning.external_sets import external_sets
from tests.conftest import ROOT, run_stages, write_params, write_plan
from tests.elsewhere import pin, put_set, run, write_list
from tests.pipeline.conftest import register

REAL_SET = os.environ.get("OPENMED_EXTERNAL_FILMS", "")


def outcome(folder, name="vit"):
    target = folder / "artifacts/external" / name
    return pd.read_parquet(target / "predictions.parquet"), json.loads((target / "metrics.json").read_text())


def test_without_a_set_the_stage_says_so_and_loads_no_model(workspace, capsys):
    shutil.rmtree(workspace / "artifacts/evaluate/vit/model")
    run_stages(workspace, ["external@vit"])
    films, metrics = outcome(workspace)
    assert len(films) == 0 and {"set", "id", "label", "score"} <= set(films.columns)
    assert metrics == {"architecture": "vit", "sets": {}}
    assert "there is no external set" in capsys.readouterr().out


def test_every_usable_film_of_every_set_is_scored_by_the_finished_model(workspace, tmp_path):
    put_set(workspace, "nih", write_list(tmp_path / "nih"))
    covid = put_set(workspace, "covid", write_list(tmp_path / "covid", 6, labels=(1,), first=6000))
    listed = pd.read_csv(covid / "films.csv", dtype=str, keep_default_na=False)
    broken = place_of(str(covid / listed.at[0, "path"]))
    with Path(broken.file).open("r+b") as archive:
        archive.seek(broken.offset + 512)
        archive.write(b"no film")
    listed.loc[0, "sha256"] = ""
    listed.to_csv(covid / "films.csv", index=False)
    pin(covid)
    run_stages(workspace, ["external@vit"])
    films, metrics = outcome(workspace)
    assert films.groupby("set").size().to_dict() == {"nih": 48, "covid": 11}
    assert (metrics["sets"]["covid"]["unusable"], metrics["sets"]["nih"]["unusable"]) == (1, 0)
    model = load_model(workspace / "artifacts/evaluate/vit/model")
    film = films.iloc[20]
    content = film_bytes(workspace / "external", film["path"], film["sha256"])
    (square,) = decode_squares(content, [model.spec.image_size_px])
    assert film["score"] == pytest.approx(model.predict(square[None])[0, 1], abs=1e-5)
    own = films[films["set"] == "nih"]
    whole = metrics["sets"]["nih"]["groups"][0]
    assert whole["auc"]["value"] == pytest.approx(roc_auc_score(own["label"], own["score"]))
    flagged = own["score"] >= model.spec.threshold
    assert whole["sensitivity"]["value"] == pytest.approx(flagged[own["label"] == 1].mean())
    assert metrics["sets"]["covid"]["groups"][0]["specificity"]["value"] is None
    assert metrics["sets"]["nih"]["second_label"]["share"]["value"] == pytest.approx(38 / 48)
    assert film["distance"] == pytest.approx(model.assess(square[None])[1][0], abs=1e-4)
    beyond = own["distance"] > model.spec.novelty.limit
    assert metrics["sets"]["nih"]["unlike"]["value"] == pytest.approx(beyond.mean())
    run_stages(workspace, ["external@vit"])
    again, _ = outcome(workspace)
    assert again.equals(films)


def test_the_report_shows_films_from_elsewhere_or_that_there_are_none(workspace, tmp_path):
    page = (workspace / "artifacts/explain/vit/report.html").read_text()
    assert "Nothing is known about films from elsewhere: no external set was scored." in page
    put_set(workspace, "nih", write_list(tmp_path / "nih"))
    run_stages(workspace, ["external@vit", "explain@vit"])
    page = (workspace / "artifacts/explain/vit/report.html").read_text()
    section = page[page.index("<h2>Films from elsewhere</h2>") :]
    _, metrics = outcome(workspace)
    assert len(metrics["sets"]["nih"]["groups"]) == 9
    for group in metrics["sets"]["nih"]["groups"]:
        assert f"<tr><td>{group['view']}</td><td>{group['age_band']}</td>" in section
        assert f"{group['auc']['value']:.3f}" in section
    unlike = 100 * metrics["sets"]["nih"]["unlike"]["value"]
    assert f"The model refers {unlike:.0f} % of the films as unlike those that it learnt from" in section
    assert "Cohen&#39;s kappa" in section or "Cohen's kappa" in section


def test_films_that_were_learnt_from_stop_the_stage(workspace, tmp_path):
    source = write_list(tmp_path / "source")
    manifest = pd.read_parquet(workspace / "artifacts/validate/manifest.parquet")
    for name, film in zip(("000_AP", "001_PA"), manifest["path"].iloc[[3, 9]], strict=True):
        known = cv2.imread(str(workspace / "data" / film), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(source.parent / f"Jane-Doe-{name}.png"), cv2.add(known, np.full_like(known, 3)))
    put_set(workspace, "nih", source)
    with pytest.raises(BadInput, match="2 of 48 films of the external set nih are in data/ too"):
        run_stages(workspace, ["external@vit"])


def test_a_set_that_changed_is_away_or_was_never_added_stops_the_stage(workspace, tmp_path):
    folder = put_set(workspace, "nih", write_list(tmp_path / "source", 4))
    (folder / "films.csv").write_text((folder / "films.csv").read_text().replace("PNEUMONIA", "NORMAL"))
    with pytest.raises(IntegrityError, match="external/nih is not the set that was added"):
        run_stages(workspace, ["external@vit"])
    shutil.move(folder, tmp_path / "away")
    with pytest.raises(BadInput, match=r"external/nih is not here: get it with `dvc pull external/nih.dvc`"):
        run_stages(workspace, ["external@vit"])
    shutil.move(tmp_path / "away", workspace / "external/other")
    (workspace / "external/nih.dvc").unlink()
    with pytest.raises(BadInput, match=r"external/other has no other.dvc: use `openmed external add`"):
        run_stages(workspace, ["external@vit"])


def test_a_model_that_is_fine_inside_and_fails_elsewhere_is_refused(workspace, store, params, tmp_path):
    """Real networks on phantoms: new patients of the same kind pass, negatives of films of others do not."""
    params["architectures"] = ["resnet50"]
    params["evaluate"]["floors"] = {"auc": 0.3, "sensitivity": 0.0, "specificity": 0.0}
    write_params(workspace, params)
    write_plan(workspace, ("clinical",))
    (workspace / "data.dvc").write_text("outs:\n- {md5: 0123456789abcdef0123456789abcdef.dir, path: data}\n")
    put_set(workspace, "alike", write_list(tmp_path / "alike", 90))
    put_set(
        workspace, "negatives", write_list(tmp_path / "negatives", 60, first=7000, change=cv2.bitwise_not)
    )
    run_stages(workspace, ["evaluate@resnet50", "external@resnet50", "explain@resnet50"])
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    verdicts = {}
    for name in ("alike", "negatives"):
        sets = {name: {"floors": {"auc": 0.5}}}
        plan["protocol"]["evaluation"]["external"] = {"required": True, "min_films": 20, "sets": sets}
        (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
        version = register(workspace, name).version
        gates = {gate.name: gate.verdict for gate in promotion.gate(version).gates}
        verdicts[name] = gates.pop(f"external {name} auc")
        assert set(gates.values()) == {"PASS"}, gates
    assert verdicts == {"alike": "PASS", "negatives": "FAIL"}
    with pytest.raises(BadInput, match="cannot be promoted: its gate says FAIL"):
        promotion.promote(version, approved_by={"clinical": "Dr A"}, comment="", expected_champion=None)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout under git and DVC with the settings of this repository."""
    folder = tmp_path / "checkout"
    (folder / "external").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "external/.gitignore", "external/README.md"):
        shutil.copy(ROOT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    return folder


def test_the_command_puts_a_set_under_dvc_once(checkout, tmp_path, openmed):
    source = write_list(tmp_path / "source", 6)
    options = ("--second-label", "reader", "--classes", "Lung Opacity=PNEUMONIA")
    code, out, error = openmed("external", "add", "nih", source, *options)
    assert code == 0, error
    assert "external/nih: 12 films of 6 patients (NORMAL 6, PNEUMONIA 6; AP 6, PA 6)" in out
    assert "Next: commit external/nih.dvc" in out
    pointer = yaml.safe_load((checkout / "external/nih.dvc").read_text())
    assert pointer["meta"]["films"] == 12 and pointer["meta"]["second_labels"] == 6
    assert external_sets(checkout) == {"nih": checkout / "external/nih"}
    assert run(checkout, "git", "status", "--porcelain", "--untracked-files=all", "external").split() == [
        *("??", "external/.gitignore"),
        *("??", "external/README.md"),
        *("??", "external/nih.dvc"),
    ]
    assert "Jane" not in (checkout / "external/nih.dvc").read_text()
    assert openmed("external", "add", "nih", source)[0] == 2
    code, out, _ = openmed("external", "list", "--json")
    assert [(one["name"], one["views"]) for one in json.loads(out)] == [("nih", {"AP": 6, "PA": 6})]
    assert "nih   12" in openmed("external", "list")[1]


def test_a_set_is_a_dependency_of_the_stage_and_is_got_back_by_dvc(checkout, tmp_path, openmed):
    assert openmed("external", "add", "nih", write_list(tmp_path / "source", 4))[0] == 0
    assert "external" in load_graph(checkout / "dvc.yaml")["external@vit"].deps
    edges = run(checkout, "dvc", "dag", "--dot", "external@vit")
    assert '"external/nih.dvc" -> "external@vit"' in edges
    shutil.rmtree(checkout / "external/nih")
    run(checkout, "dvc", "checkout", "external/nih.dvc")
    assert len(external_sets(checkout)) == 1


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Nih", (), "'Nih' cannot name a set"),
        ("../nih", (), "cannot name a set"),
        ("nih", ("--classes", "Healthy"), "'Healthy' does not say what a class is called"),
        ("nih", ("--second-label", "nobody"), "has no column nobody"),
    ],
)
def test_a_set_that_cannot_be_is_refused_in_a_sentence(checkout, tmp_path, openmed, name, options, said):
    code, _, error = openmed("external", "add", name, write_list(tmp_path / "source", 2), *options)
    assert code == 2 and said in error and error.count("\n") == 1
    assert {path.name for path in (checkout / "external").iterdir()} == {".gitignore", "README.md"}


def test_a_set_without_a_usable_film_is_not_added(checkout, tmp_path, openmed):
    source = write_list(tmp_path / "source", 2)
    for film in source.parent.glob("*.png"):
        film.write_bytes(b"no film")
    code, _, error = openmed("external", "add", "nih", source)
    assert code == 2 and "none of the 4 films of the set is usable" in error
    assert {path.name for path in (checkout / "external").iterdir()} == {".gitignore", "README.md"}


@pytest.mark.skipif(not REAL_SET, reason="OPENMED_EXTERNAL_FILMS names no zip of films with a films.csv")
def test_real_films_from_elsewhere_come_in_and_are_scored(workspace, tmp_path):
    with zipfile.ZipFile(REAL_SET) as archive:
        archive.extractall(tmp_path / "real")
    table = pd.read_csv(tmp_path / "real/films.csv", dtype=str, keep_default_na=False)
    table = table.rename(columns={"radiologist_label": "reader"})
    for name, site in (("nih", "nih_chestxray14"), ("hannover", "hannover_covid")):
        table[table["source"] == site].to_csv(tmp_path / f"real/{name}.csv", index=False)
        source = tmp_path / f"real/{name}.csv"
        folder = put_set(workspace, name, source)
        assert not [path for path in folder.rglob("*") if path.is_file() and "-" in path.stem]
    run_stages(workspace, ["external@vit"])
    films, metrics = outcome(workspace)
    assert films.groupby("set").size().to_dict() == {"nih": 515, "hannover": 243}
    nih = metrics["sets"]["nih"]
    assert {group["view"] for group in nih["groups"]} == {"all", "AP", "PA"}
    assert nih["second_label"]["films"] == 73 + 41
    assert metrics["sets"]["hannover"]["groups"][0]["auc"]["value"] is None
