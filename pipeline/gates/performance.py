"""What a version must show on its test films beyond the floors of its evaluation."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.metrics.gates import FAIL, INSUFFICIENT, PASS
from openmed.metrics.net_benefit import decision_curve
from openmed.metrics.power import auc_floor, proportion_floor
from openmed.metrics.score_intervals import operating_shares
from pipeline.gates.comparison import Comparison
from pipeline.gates.evidence import Evidence, verdict_gate
from pipeline.judgement import patient_numbers

if TYPE_CHECKING:
    import pandas as pd


_SIDES_PX = (0, 512, 1024, 2048, np.inf)
_RESOLUTIONS = ("below 512 px", "512 to 1023 px", "1024 to 2047 px", "2048 px and more")
_CONCERNS = {"sensitivity": "with the finding", "specificity": "without the finding"}


def performance_gates(evidence: Evidence) -> list[dict[str, Any]]:
    """Gives the gates on operating point, probabilities, benefit, groups, sites, hidden parts and novelty."""
    gates = [gate(evidence) for gate in (_transfer, _calibration, _net_benefit, _subgroups)]
    return [*gates, *_at_sites(evidence), _shortcuts(evidence), _unlike(evidence)]


def limits_of_the_test(evidence: Evidence) -> list[str]:
    """Says, a sentence for each floor, what this test set could have shown and what it could not."""
    test, rules = evidence.test, evidence.rules
    positives = int((test["label"] == evidence.spec.positive_index).sum())
    negatives, measured, said = len(test) - positives, evidence.metrics["test"], []
    for name, floor in rules.floors.items():
        value = measured[name]["value"]
        if value is None or not 0 < floor < 1 or not positives or not negatives:
            continue
        if name == "auc":
            found = auc_floor(floor, positives, negatives, value, confidence=rules.confidence)
        else:
            films = positives if name == "sensitivity" else negatives
            kind = f"films {_CONCERNS[name]}"
            found = proportion_floor(floor, films, value, name=name, kind=kind, confidence=rules.confidence)
        said.append(found.sentence)
    return said


def _transfer(evidence: Evidence) -> dict[str, Any]:
    """The sensitivity that the threshold was chosen for must be possible on the test films."""
    target, found = evidence.rules.target_sensitivity, evidence.metrics["test"]["sensitivity"]
    numbers = {key: found[key] for key in ("value", "low", "high")} | {"floor": target}
    if found["high"] is not None and found["high"] >= target:
        verdict = PASS
        reason = (
            f"The threshold was chosen for a sensitivity of {target:g}; the test films do not contradict it."
        )
    else:
        verdict = FAIL
        reason = (
            f"The threshold was chosen for a sensitivity of {target:g}, but the test films rule that out: "
            "calibration and test films differ."
        )
    return {"name": "threshold transfer", **numbers, "verdict": verdict, "reason": reason}


def _calibration(evidence: Evidence) -> dict[str, Any]:
    allowed = evidence.plan.protocol.evaluation.max_calibration_error
    error = evidence.metrics["reliability"]["calibrated"]["ece"]
    passed = error is not None and error <= allowed
    said = f"Probabilities are off by {_shown(error)} on average; {allowed:g} is allowed."
    return verdict_gate("calibration", PASS if passed else FAIL, said, error)


def _net_benefit(evidence: Evidence) -> dict[str, Any]:
    """Acting on the model must be worth more than flagging every film or none, where the finding is rare."""
    test, rules, setting = evidence.test, evidence.rules, evidence.plan.protocol.evaluation.net_benefit
    (point,) = decision_curve(
        test["label"] == evidence.spec.positive_index,
        test["score"],
        patient_numbers(test),
        [setting.threshold_probability],
        threshold=evidence.spec.threshold,
        prevalence=setting.prevalence,
        **rules.resampling,
    )
    gain, above = point.gain, setting.above
    verdict = PASS if gain.low > above else INSUFFICIENT if gain.value > above else FAIL
    said = (
        f"At a prevalence of {setting.prevalence:g}, acting on the model gains {gain.value:.3f} "
        f"(at least {gain.low:.3f}) true positives a film over the better of flagging every film and none."
    )
    return {"name": "net benefit", **gain.to_json(), "floor": above, "verdict": verdict, "reason": said}


def _subgroups(evidence: Evidence) -> dict[str, Any]:
    """No group of films may be surely worse served than the plan accepts."""
    settings = evidence.plan.protocol.evaluation.subgroups
    below, judged, small = [], 0, 0
    for group in subgroups(evidence):
        for name, floor in settings.floors.items():
            if group["films"][name] < settings.min_films:
                small += 1
                continue
            judged += 1
            if not group[name]["high"] >= floor:
                below.append(
                    f"{name} in {group['group']} is {group[name]['value']:.3f}, surely below {floor:g}"
                )
    if below:
        return verdict_gate("subgroups", FAIL, f"{'; '.join(below)}.", len(below))
    said = (
        f"None of {judged} judged shares of subgroups is surely below its floor; {small} have too few films."
    )
    return verdict_gate("subgroups", PASS, said, 0)


def _at_sites(evidence: Evidence) -> list[dict[str, Any]]:
    """The frozen threshold must serve at every simulated site, the worst one included."""
    floors = evidence.plan.protocol.evaluation.stress.site_floors
    if floors is None:
        said = "The change plan of this version is older than simulated sites and names no floors for them."
        return [verdict_gate("robustness", INSUFFICIENT, said)]
    return [_robustness(evidence, share, floor) for share, floor in floors.items()]


def _robustness(evidence: Evidence, share: str, floor: float) -> dict[str, Any]:
    worst = evidence.metrics["sites"]["test"]["worst"][share]
    value, low = (-math.inf if worst[key] is None else worst[key] for key in ("value", "low"))
    verdict = FAIL if value < floor else INSUFFICIENT if low < floor else PASS
    said = f"At the worst simulated site ({worst['site']}) the {share} is {_shown(worst['value'])}"
    numbers = {key: worst[key] for key in ("value", "low", "high")}
    reason = f"{said} and could be {_shown(worst['low'])}; {floor:g} is required."
    return {"name": f"robustness {share}", **numbers, "floor": floor, "verdict": verdict, "reason": reason}


def _shortcuts(evidence: Evidence) -> dict[str, Any]:
    """A model that needs the border, or does not need the lungs, looks at something else than the finding."""
    limits, stress = evidence.plan.protocol.evaluation.stress, evidence.metrics["stress"]
    left = stress["lungs hidden"]["auc"]
    if not _known(left) <= limits.max_auc_without_lungs:
        said = (
            f"With both lungs hidden its AUC is {_shown(left)}, above {limits.max_auc_without_lungs:g}: "
            "it looks at something else than the finding."
        )
        return verdict_gate("shortcuts", FAIL, said, left)
    return _loss_gate("shortcuts", stress["border hidden"]["loss"], limits.max_border_loss, "a hidden border")


def _loss_gate(name: str, loss: Mapping[str, Any], allowed: float, change: str) -> dict[str, Any]:
    value, low = _known(loss["value"]), _known(loss["low"])
    verdict = PASS if value <= allowed else INSUFFICIENT if low <= allowed else FAIL
    said = f"The AUC falls by {_shown(loss['value'])} by {change}; {allowed:g} is allowed."
    return {"name": name, **loss, "floor": allowed, "verdict": verdict, "reason": said}


def _unlike(evidence: Evidence) -> dict[str, Any]:
    """Test films come from where the training films do: hardly any may be called unlike them."""
    from pipeline.novelty import novelty_check

    allowed, name = evidence.plan.protocol.evaluation.max_unlike, "unlike films"
    if allowed is None:
        return verdict_gate(name, PASS, "The change plan says nothing of films referred as unlike.")
    found = novelty_check(evidence.rules, evidence.spec, evidence.test)
    if found is None:
        said = "It tells no films unlike those that it learnt from: set evaluate.unlike_share and retrain."
        return verdict_gate(name, FAIL, said)
    share, films = found["referred"], len(evidence.test)
    said = f"Of {films} test films {found['films']} are referred as unlike those that it learnt from"
    surely = share["low"] is not None and share["low"] > allowed
    reason = f"{said}, surely more than {allowed:.0%}." if surely else f"{said}; {allowed:.0%} is allowed."
    return {"name": name, **share, "floor": allowed, "verdict": FAIL if surely else PASS, "reason": reason}


def _known(number: float | None) -> float:
    """What could not be measured is worse than anything."""
    return math.inf if number is None else number


def subgroups(evidence: Evidence, champion: Comparison | None = None) -> list[dict[str, Any]]:
    """Returns sensitivity and specificity, with Wilson intervals, of every group of test films.

    Args:
        evidence: On the version.
        champion: Its comparison with the champion: then the groups are of the films compared.

    Returns:
        For each group: group (name), films (how many each share is of), sensitivity and specificity; and
        champion, the same two shares of the champion, None where it was not compared.
    """
    if evidence.films is None:
        return []
    compared = champion is not None and champion.films is not None
    films = champion.films if compared else evidence.test
    known = evidence.films.assign(id=evidence.films["sha256"].str[:16])
    test = films.drop(columns="sha256", errors="ignore").merge(_groups(known), on="id", how="left")
    has, confidence = test["label"] == evidence.spec.positive_index, evidence.rules.confidence
    flagged = test["score"] >= evidence.spec.threshold
    theirs = test["score_other"] >= champion.other_threshold if compared else None
    found = []
    for column in [name for name in test.columns if name.startswith("group_")]:
        title = column.removeprefix("group_").replace("age_band", "age")
        for value, rows in test.groupby(column, observed=True).indices.items():
            own = _shares(has.iloc[rows], flagged.iloc[rows], confidence)
            other = _shares(has.iloc[rows], theirs.iloc[rows], confidence) if compared else None
            counts = {"sensitivity": int(has.iloc[rows].sum()), "specificity": int((~has.iloc[rows]).sum())}
            found.append({"group": f"{title} {value}", "films": counts, **own, "champion": other})
    return found


def _groups(known: "pd.DataFrame") -> "pd.DataFrame":
    """Names the group of each film, by resolution and whatever else is known of it."""
    import pandas as pd

    groups = {}
    if {"width", "height"} <= set(known.columns):
        side = known[["width", "height"]].min(axis=1)
        groups["group_resolution"] = pd.cut(side, _SIDES_PX, labels=_RESOLUTIONS, right=False)
    for name in ("sex", "age_band", "view", "source", "manufacturer"):
        if name in known:
            groups[f"group_{name}"] = known[name].replace("", np.nan)
    return pd.DataFrame({"id": known["id"], **groups})


def _shares(has: "pd.Series", flagged: "pd.Series", confidence: float) -> dict[str, dict[str, Any]]:
    shares = operating_shares(has, flagged, confidence)
    return {name: each.to_json() for name, each in shares.items()}


def _shown(number: float | None) -> str:
    return "an unknown amount" if number is None else f"{number:.3f}"
