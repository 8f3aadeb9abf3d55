import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import cohen_kappa_score, recall_score, roc_auc_score

from openmed.gates.external_validation import describe_set

CLASSES = ("NORMAL", "PNEUMONIA")
THRESHOLD = 0.5


def films(number=400, seed=0):
    """The sick are filmed lying more often, and the score knows the view a little."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, number)
    lying = rng.uniform(size=number) < 0.3 + 0.4 * label
    second = np.where(rng.uniform(size=number) < 0.8, label, 1 - label)
    return pd.DataFrame(
        {
            "label": label,
            "second_label": pd.array(np.where(rng.uniform(size=number) < 0.5, second, -1), "Int64"),
            "patient": [f"p{n:03d}" for n in rng.integers(0, number // 2, number)],
            "view": np.where(lying, "AP", "PA"),
            "age_band": rng.choice(["20-39", "40-59", ""], number),
            "score": np.clip(0.2 + 0.3 * label + 0.15 * lying + rng.normal(0, 0.15, number), 0, 1),
        }
    ).assign(second_label=lambda table: table["second_label"].mask(table["second_label"] < 0))


def described(table, **more):
    return describe_set(table, CLASSES, 1, THRESHOLD, replicates=100, seed=1, **more)


def test_each_group_is_measured_as_scikit_learn_measures_it():
    table = films()
    found = described(table)
    assert (found["films"], found["patients"]) == (400, table["patient"].nunique())
    groups = {(group["view"], group["age_band"]): group for group in found["groups"]}
    assert set(groups) == {
        (view, band) for view in ("all", "AP", "PA") for band in ("all", "20-39", "40-59", "unknown")
    }
    for (view, band), group in groups.items():
        part = table if view == "all" else table[table["view"] == view]
        part = part if band == "all" else part[part["age_band"] == band.replace("unknown", "")]
        flagged = part["score"] >= THRESHOLD
        assert (group["films"], group["positives"]) == (len(part), part["label"].sum())
        assert group["auc"]["value"] == pytest.approx(roc_auc_score(part["label"], part["score"]))
        assert group["sensitivity"]["value"] == pytest.approx(recall_score(part["label"], flagged))
        assert group["specificity"]["value"] == pytest.approx(
            recall_score(part["label"], flagged, pos_label=0)
        )
        assert group["auc"]["low"] < group["auc"]["value"] < group["auc"]["high"]


def test_how_well_the_score_tells_the_view_is_measured_within_each_class():
    table = films()
    found = described(table)["view_separation"]
    assert [(row["class"], row["views"]) for row in found] == [(name, ["AP", "PA"]) for name in CLASSES]
    for label, row in enumerate(found):
        own = table[table["label"] == label]
        lying, standing = (own.loc[own["view"] == view, "score"] for view in ("AP", "PA"))
        assert row["films"] == [len(lying), len(standing)]
        wins = mannwhitneyu(lying, standing).statistic / (len(lying) * len(standing))
        assert row["auc"]["value"] == pytest.approx(wins)
        assert row["auc"]["low"] > 0.5


def test_a_second_label_is_compared_and_judged_by_view():
    table = films()
    found = described(table)["second_label"]
    both = table[table["second_label"].notna()]
    second = both["second_label"].astype(int)
    assert found["films"] == len(both)
    assert found["share"]["value"] == pytest.approx((both["label"] == second).mean())
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(both["label"], second))
    assert found["first"][0]["auc"]["value"] == pytest.approx(roc_auc_score(both["label"], both["score"]))
    lying = both["view"] == "AP"
    (group,) = [group for group in found["second"] if group["view"] == "AP"]
    assert group["auc"]["value"] == pytest.approx(roc_auc_score(second[lying], both["score"][lying]))


def test_a_set_of_one_class_and_one_view_has_a_sensitivity_alone():
    table = films()
    table = table[table["label"] == 1].assign(view="AP", age_band="", second_label=pd.NA)
    found = described(table)
    (group,) = found["groups"]
    assert (group["view"], group["age_band"]) == ("AP", "unknown")
    assert group["auc"]["value"] is None
    assert group["specificity"] == {"value": None, "low": None, "high": None}
    assert group["sensitivity"]["value"] == pytest.approx((table["score"] >= THRESHOLD).mean())
    assert found["view_separation"] == []
    assert found["second_label"] is None
    assert json.loads(json.dumps(found)) == found
