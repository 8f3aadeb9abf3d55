"""Films from elsewhere as evidence: floors, too few films, looks, and the comparison with the champion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from openmed.errors import IntegrityError
from openmed.files import read_json, write_json
from openmed.gates.gate import FAIL, INSUFFICIENT, OUTSIDE_PLAN, PASS
from openmed.metrics.score_intervals import wilson
from pipeline import registry
from pipeline.promotion import actions as promotion
from pipeline.promotion.documents import write_documents
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.external import external_gates, external_looks
from pipeline.settings.plan import PLAN_FILE
from tests.conftest import ROOT, write_plan
from tests.pipeline.conftest import crown, elsewhere, make_workspace, register

FLOORS = {"auc": 0.7, "sensitivity": 0.6, "specificity": 0.6}
NIH = {"required": True, "min_films": 10, "sets": {"nih": {"floors": FLOORS}}}


def planned(folder, external, **more):
    """Writes the plan of a workspace before it is registered."""
    write_plan(folder, ("clinical",))
    plan = yaml.safe_load((folder / PLAN_FILE).read_text())
    plan["protocol"]["evaluation"] |= {"external": external, **more}
    (folder / PLAN_FILE).write_text(yaml.safe_dump(plan))


def judged(root, number, external, sets, *, seed=0, run_key=None, **more):
    """Registers a version and returns its gates by name, with the verdict."""
    workspace = root / str(number)
    workspace.mkdir()
    planned(workspace, external, **more)
    make_workspace(workspace, ("vit",), seed=seed, external=sets)
    version = register(workspace, run_key or f"run-{number}").version
    return promotion.gate(version)


def named(result, part="gates"):
    return {gate.name: gate for gate in getattr(result, part)}


@pytest.fixture
def root(store, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_a_version_that_is_right_elsewhere_passes_and_one_that_is_wrong_there_is_refused(root):
    good = judged(root, 1, NIH, {"nih": elsewhere()})
    assert good.verdict == PASS
    assert [name for name in named(good) if "nih" in name] == [
        "external nih auc",
        "external nih sensitivity",
        "external nih specificity",
        "looks nih",
    ]
    turned = elsewhere()
    turned = turned.assign(label=1 - turned["label"])
    bad = judged(root, 2, NIH, {"nih": turned})
    assert bad.verdict == FAIL
    inside = [gate.verdict for name, gate in named(bad).items() if "nih" not in name]
    assert set(inside) == {PASS}
    assert named(bad)["external nih auc"].verdict == FAIL
    assert "external nih sensitivity" in bad.table_markdown
    with pytest.raises(Exception, match="cannot be promoted: its gate says FAIL"):
        promotion.promote("2", approved_by={"clinical": "Dr A"}, comment="", expected_champion=None)


@pytest.fixture
def asked(registered, tmp_path):
    """Asks the gates about the registered version as if its plan and its external films were others."""
    evidence = Evidence.of("1")

    def gates(external, sets):
        planned(tmp_path, external)
        parts = [rows.assign(set=name, id=_ids(rows), sha256=_ids(rows)) for name, rows in sets.items()]
        films = pd.concat(parts, ignore_index=True) if parts else evidence.external
        films = films.assign(patient=[f"e{number // 2:06d}" for number in range(len(films))])
        changed = replace(evidence, plan_file=tmp_path / PLAN_FILE, external=films)
        return {gate.name: gate for judged in (external_gates, external_looks) for gate in judged(changed)}

    return gates


def _ids(rows):
    return [f"{number:016x}" for number in range(len(rows))]


def test_the_worst_view_is_judged_with_its_own_interval(asked):
    films = elsewhere(films=120)
    lying = films["view"] == "AP"
    wrong = lying & (films["label"] == 1) & (np.arange(120) % 8 == 2)
    films.loc[wrong, "score"] = 0.2
    gate = asked(NIH, {"nih": films})["external nih sensitivity"]
    sick = films[lying & (films["label"] == 1)]
    right = int((sick["score"] >= 0.5).sum())
    assert 0 < right < len(sick)
    assert gate.value == pytest.approx(right / len(sick))
    # Two films a patient, so the bootstrap may be wider than the score interval, never narrower.
    assert gate.low <= wilson(right, len(sick)).low + 1e-9
    assert gate.reason.startswith("Films of nih, view AP: Sensitivity is ")
    together = asked(NIH, {"nih": films.assign(view="PA")})["external nih auc"]
    assert together.value == pytest.approx(roc_auc_score(films["label"], films["score"]))


def test_too_few_films_of_a_class_and_view_are_no_evidence(asked):
    films = elsewhere()
    rare = films[(films["view"] == "AP") & (films["label"] == 0)].index[7:]
    gates = asked(NIH, {"nih": films.drop(rare)})
    assert set(gates) == {"external nih", "looks nih"}
    gate = gates["external nih"]
    assert gate.verdict == INSUFFICIENT
    assert gate.reason == (
        "Only 7 of its films are NORMAL of view AP; the plan asks for 10 of each class and view."
    )


def test_a_class_that_a_view_lacks_is_too_few_films(asked):
    films = elsewhere()
    confounded = films[(films["view"] == "AP") == (films["label"] == 1)]
    gate = asked(NIH, {"nih": confounded})["external nih"]
    assert gate.verdict == INSUFFICIENT and gate.reason.startswith("Only 0 of its films are ")


def test_a_set_of_one_class_has_one_share(asked):
    covid = {"required": True, "min_films": 10, "sets": {"covid": {"floors": {"sensitivity": 0.6}}}}
    sick = {"covid": elsewhere(labels=(1,), views=("",))}
    gate = asked(covid, sick)["external covid sensitivity"]
    assert gate.verdict == PASS and gate.reason.startswith("Films of covid: Sensitivity")
    covid["sets"]["covid"]["floors"]["specificity"] = 0.6
    gate = asked(covid, sick)["external covid specificity"]
    assert gate.verdict == INSUFFICIENT
    assert gate.reason == "The external set covid has films of one class only: it has no specificity."


@pytest.mark.parametrize(
    ("external", "sets", "name", "verdict", "said"),
    [
        (
            {"required": True, "min_films": 10, "sets": {}},
            {},
            "external",
            INSUFFICIENT,
            "about films from elsewhere: the change plan asks for external sets and names none.",
        ),
        (
            {"required": False, "min_films": 10, "sets": {}},
            {},
            "external",
            PASS,
            "Nothing is known about films from elsewhere, and the change plan does not ask for it.",
        ),
        (
            {"required": False, "min_films": 10, "sets": {}},
            {"nih": None},
            "external",
            PASS,
            "Nothing is known about films from elsewhere, and the change plan does not ask for it. "
            "It was scored on nih, which no plan holds it to.",
        ),
        (
            NIH | {"required": False},
            {},
            "external nih",
            INSUFFICIENT,
            "This version was not scored on the external",
        ),
        (None, {}, "external", INSUFFICIENT, "the change plan has no section `external`: add it"),
    ],
)
def test_what_is_not_known_is_said(asked, external, sets, name, verdict, said):
    (gate,) = asked(external, {key: elsewhere() for key in sets}).values()
    assert (gate.name, gate.verdict) == (name, verdict)
    assert said in gate.reason


def test_a_production_plan_without_sets_lets_nothing_through(root):
    production = yaml.safe_load((ROOT / "change_plan.production.yaml").read_text())
    result = judged(root, 1, production["protocol"]["evaluation"]["external"], {})
    assert result.verdict == INSUFFICIENT
    assert "Nothing is known about films from elsewhere" in result.table_markdown
    page = Path(promotion.show("1", workspace=root / "1").review).read_text()
    assert "Nothing is known about films from elsewhere: no external set was scored." in page


def test_looks_at_the_same_films_are_counted_whatever_the_set_is_called(root):
    sets = {"nih": elsewhere()}
    first = judged(root, 1, NIH, sets, looks=1)
    assert named(first)["looks nih"].value == 1
    again = judged(root, 2, NIH, sets, seed=1, looks=1)
    gate = named(again)["looks nih"]
    assert (gate.verdict, gate.value) == (OUTSIDE_PLAN, 2)
    assert gate.reason == (
        "The external set nih has judged 2 versions; the plan allows 1: add a set of new films."
    )
    other = judged(root, 3, NIH, {"nih": elsewhere(films=80)}, seed=2, looks=9)
    assert named(other)["looks nih"].value == 1


def test_the_champion_is_compared_on_the_same_external_films(root):
    judged(root, 1, NIH, {"nih": elsewhere()})
    crown("1")
    result = judged(root, 2, NIH, {"nih": elsewhere()}, seed=3)
    assert [name for name in named(result, "comparison") if "nih" in name] == [
        "external nih: auc vs champion",
        "external nih: sensitivity vs champion",
        "external nih: specificity vs champion",
    ]
    own = pd.read_parquet(registry.artifact("2", "external_predictions.parquet"))
    theirs = pd.read_parquet(registry.artifact("2", "champion_external_predictions.parquet"))
    both = own.merge(theirs[["id", "score"]], on="id", suffixes=("", "_champion"))
    assert len(both) == len(own) == 60
    difference = roc_auc_score(both["label"], both["score"]) - roc_auc_score(
        both["label"], both["score_champion"]
    )
    assert named(result, "comparison")["external nih: auc vs champion"].value == pytest.approx(difference)


def test_a_version_much_worse_than_the_champion_elsewhere_is_refused(root):
    """The champion is a network of random weights, so it is beaten or not by construction of the labels."""
    lax = {"required": True, "min_films": 10, "sets": {"nih": {"floors": {"auc": 0.0}}}}
    judged(root, 1, lax, {"nih": elsewhere()})
    crown("1")
    films = elsewhere()
    judged(root, 2, lax, {"nih": films}, seed=4)
    theirs = pd.read_parquet(registry.artifact("2", "champion_external_predictions.parquet"))["score"]
    # Labels as the champion would give them; the candidate says the opposite.
    label = (theirs > theirs.median()).astype(int).to_numpy()
    worse = films.assign(label=label, score=np.where(label == 1, 0.2, 0.8), view="")
    result = judged(root, 3, lax, {"nih": worse}, seed=5)
    gate = named(result, "comparison")["external nih: auc vs champion"]
    assert gate.value == pytest.approx(-1) and gate.verdict == FAIL
    assert result.verdict == FAIL


def test_a_champion_without_scores_on_a_set_is_never_passed_over(root):
    judged(root, 1, NIH, {"nih": elsewhere()})
    judged(root, 2, NIH, {"nih": elsewhere()}, seed=3)
    crown("1")
    result = promotion.gate("2")
    assert result.verdict == INSUFFICIENT and "register" in result.note
    with_films = promotion.gate("2", workspace=root / "2")
    assert "external nih: auc vs champion" in named(with_films, "comparison")


def test_no_patient_of_a_set_is_named_and_every_byte_is_verified(root):
    judged(root, 1, NIH, {"nih": elsewhere()})
    table = registry.artifact("1", "external_predictions.parquet")
    films = pd.read_parquet(table)
    assert films["patient"].str.fullmatch(r"e\d{6}").all() and "path" not in films
    assert films["patient"].nunique() == 30
    assert not [link for link in registry.verify("1") if link.problem]
    films.assign(score=0.9).to_parquet(table)
    with pytest.raises(IntegrityError, match=r"external_predictions.parquet of version 1 was changed"):
        promotion.gate("1")


def test_numbers_that_are_not_those_of_the_films_are_found(root, tmp_path):
    workspace = root / "1"
    workspace.mkdir()
    planned(workspace, NIH)
    make_workspace(workspace, ("vit",), external={"nih": elsewhere()})
    path = workspace / "artifacts/external/vit/metrics.json"
    content = read_json(path)
    content["sets"]["nih"]["groups"][0]["auc"]["value"] = 0.123
    write_json(path, content)
    register(workspace)
    (broken,) = [link for link in registry.verify("1") if link.problem]
    assert broken.name == "films from elsewhere" and "external.json of version 1 says 0.123" in broken.problem


def test_the_review_page_shows_each_view_of_each_set(root):
    result = judged(root, 1, NIH, {"nih": elsewhere().assign(second_label=pd.array([1, 0] * 30, "Int64"))})
    assert result.verdict == PASS
    page = Path(promotion.show("1", workspace=root / "1").review).read_text()
    section = page[page.index("<h2>Films from elsewhere</h2>") :]
    assert "60 films of 30 patients" in section
    for view in ("all", "AP", "PA"):
        assert (
            f'<tr><td>{view}</td><td>unknown</td><td class="n">{60 if view == "all" else 30}</td>' in section
        )
    assert "PNEUMONIA</td><td>AP against PA</td>" in section
    assert "The two agree on 0.50 of them" in section
    write_documents("1", root / "documents")
    card = (root / "documents/model-card.md").read_text()
    assert "| films from elsewhere | nih, 60 films: auc 1.00, sensitivity 1.00, specificity 1.00 |" in card
