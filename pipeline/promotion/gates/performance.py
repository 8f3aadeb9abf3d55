"""What a version must show on its test films beyond the floors of its evaluation."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from openmed.fitted.operating_point import transfer_chance
from openmed.gates.gate import FAIL, INSUFFICIENT, PASS, judge
from openmed.gates.power import auc_floor, proportion_floor
from openmed.metrics.calibration_error import slope_interval, unbiased_calibration_error
from openmed.metrics.clinical_utility import net_benefit_gain
from openmed.metrics.clustered import clustered_share, operating_shares
from openmed.metrics.intervals import judged_intervals
from pipeline.evaluation.judgement import patient_numbers
from pipeline.promotion.gates.comparison import Comparison
from pipeline.promotion.gates.evidence import Evidence, verdict_gate

if TYPE_CHECKING:
    import pandas as pd


_SIDES_PX = (0, 512, 1024, 2048, np.inf)
_RESOLUTIONS = ("below 512 px", "512 to 1023 px", "1024 to 2047 px", "2048 px and more")
_CONCERNS = {"sensitivity": "with the finding", "specificity": "without the finding"}


def floor_gates(evidence: Evidence) -> list[dict[str, Any]]:
    """The gates of its evaluation; from the second look at its test patients on with surer limits."""
    if evidence.look == 1:
        return evidence.gates
    test, rules = evidence.test, evidence.rules_of_look
    found = judged_intervals(
        test["label"] == evidence.spec.positive_index,
        test["score"],
        patient_numbers(test),
        evidence.spec.threshold,
        rules.confidence,
    )
    return [gate.to_json() for gate in judge(found, rules.floors)[1]]


def performance_gates(evidence: Evidence) -> list[dict[str, Any]]:
    """Gives the gates on operating point, probabilities, benefit, groups, sites and hidden parts."""
    gates = [gate(evidence) for gate in (transfer, calibration, net_benefit, _subgroups)]
    return [*gates, *_at_sites(evidence), _shortcuts(evidence)]


def limits_of_the_test(evidence: Evidence) -> list[str]:
    """Says, a sentence for each floor, what this test set could have shown, whatever it did show."""
    test, rules = evidence.test, evidence.rules
    positives = int((test["label"] == evidence.spec.positive_index).sum())
    negatives, said = len(test) - positives, []
    for name, floor in rules.floors.items():
        if not 0 < floor < 1 or not positives or not negatives:
            continue
        if name == "auc":
            found = auc_floor(floor, positives, negatives, confidence=rules.confidence)
        else:
            films = positives if name == "sensitivity" else negatives
            # What the threshold was chosen for; of the specificity nothing was planned.
            planned = rules.target_sensitivity if name == "sensitivity" else None
            kind = f"films {_CONCERNS[name]}"
            found = proportion_floor(floor, films, planned, name=name, kind=kind, confidence=rules.confidence)
        said.append(found.sentence)
    return said


def transfer(evidence: Evidence) -> dict[str, Any]:
    """Whether the test films can be from where the calibration films are, by their sensitivities."""
    rules, films = evidence.rules, evidence.predictions
    has = films[films["label"] == evidence.spec.positive_index]
    parts = [has[has["split"] == split] for split in ("calibration", "test")]
    before, now = ((part["score"] >= evidence.spec.threshold, patient_numbers(part)) for part in parts)
    chance = transfer_chance(*before, *now)
    found, chosen = clustered_share(*now, rules.confidence), float(before[0].mean())
    said = (
        f"At the threshold the sensitivity is {_shown(chosen)} on {len(parts[0])} calibration films and "
        f"{_shown(found.value)} on {len(parts[1])} test films"
    )
    if not chance > evidence.error_share / 2:
        verdict, said = FAIL, f"{said}, which chance does not explain: the two differ in kind."
    else:
        verdict, said = PASS, f"{said}; films of one kind differ as much in {chance:.0%} of such tests."
    numbers = found.to_json() | {"floor": chosen}
    return {"name": "threshold transfer", **numbers, "verdict": verdict, "reason": said}


def calibration(evidence: Evidence) -> dict[str, Any]:
    """Probabilities must not be surely off, on average or in their slope, by more than the plan allows."""
    limits, confidence = evidence.plan.protocol.evaluation, 1 - evidence.error_share
    test = evidence.test
    told = test["label"] == evidence.spec.positive_index, test["score"], patient_numbers(test)
    error = unbiased_calibration_error(*told, confidence)
    slope = slope_interval(*told, confidence)
    most, allowed = limits.max_calibration_error, limits.calibration_slope
    said = f"Probabilities are off by {error.value:.3f} (at least {error.low:.3f}); {most:g} is allowed"
    failed = error.low > most
    if math.isnan(slope.value):
        said += "; the scores separate the classes, so they have no slope"
    else:
        said += f"; their slope is {slope.value:.2f} ({slope.low:.2f} to {slope.high:.2f}, best is 1)"
        if allowed is not None:
            failed |= slope.high < allowed[0] or slope.low > allowed[1]
            said += f", {allowed[0]:g} to {allowed[1]:g} is allowed"
    numbers = error.to_json() | {"floor": most}
    return {"name": "calibration", **numbers, "verdict": FAIL if failed else PASS, "reason": f"{said}."}


def net_benefit(evidence: Evidence) -> dict[str, Any]:
    """Acting on the model must be worth more than flagging every film or none, where the finding is rare."""
    test, setting = evidence.test, evidence.plan.protocol.evaluation.net_benefit
    shares = operating_shares(
        test["label"] == evidence.spec.positive_index,
        test["score"] >= evidence.spec.threshold,
        patient_numbers(test),
        evidence.rules_of_look.confidence,
    )
    odds = setting.threshold_probability / (1 - setting.threshold_probability)
    found = {}
    # The gain is a straight line in the odds on either side of the prevalence, where all and none are equal.
    for factor in (1 / setting.odds_range, 1.0, setting.odds_range):
        wavering = odds * factor / (1 + odds * factor)
        found[wavering] = net_benefit_gain(
            **shares, threshold_probability=wavering, prevalence=setting.prevalence
        )
    wavering, gain = min(found.items(), key=lambda item: _unknown_first(item[1].low))
    above = setting.above
    verdict = PASS if gain.low > above else INSUFFICIENT if gain.value > above else FAIL
    said = (
        f"At a prevalence of {setting.prevalence:g}, for whoever would look again at a film from a "
        f"probability of {min(found):.2g} to {max(found):.2g} on, acting on the model gains "
        f"{_shown(gain.value)} (at least {_shown(gain.low)}, at {wavering:.2g}) true positives a film over "
        "the better of flagging every film and none."
    )
    return {"name": "net benefit", **gain.to_json(), "floor": above, "verdict": verdict, "reason": said}


def _unknown_first(number: float) -> float:
    return -math.inf if math.isnan(number) else number


def _subgroups(evidence: Evidence) -> dict[str, Any]:
    """No group of films may be surely worse served than the plan accepts; one error rate over all groups."""
    settings, name = evidence.plan.protocol.evaluation.subgroups, "subgroups"
    if evidence.films is None:
        said = (
            "Nothing is known of the films of this version, so no group could be judged: register it again."
        )
        return verdict_gate(name, INSUFFICIENT, said)
    sizes = [
        group["films"][share] >= settings.min_films
        for group in subgroups(evidence)
        for share in settings.floors
    ]
    judged, small = sum(sizes), len(sizes) - sum(sizes)
    if not judged:
        said = f"None of {small} shares of groups rests on {settings.min_films} films: no group is judged."
        return verdict_gate(name, INSUFFICIENT, said)
    # Bonferroni: of many groups that are just good enough, one fails by chance no oftener than one alone.
    level = 1 - evidence.error_share / judged
    below = [
        f"{share} in {group['group']} is {group[share]['value']:.3f}, surely below {floor:g}"
        for group in subgroups(evidence, confidence=level)
        for share, floor in settings.floors.items()
        if group["films"][share] >= settings.min_films and not group[share]["high"] >= floor
    ]
    if below:
        return verdict_gate(name, FAIL, f"{'; '.join(below)}.", len(below))
    said = f"None of {judged} judged shares of subgroups is surely below its floor"
    return verdict_gate(name, PASS, f"{said}; {small} have too few films.", 0)


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
    most, left = limits.max_auc_without_lungs, stress["lungs hidden"]["auc"]
    # Evidence of before has no limits of it.
    high = stress["lungs hidden"].get("auc_high", left)
    said = f"With both lungs hidden its AUC is {_shown(left)}"
    if not _known(left) <= most:
        said = f"{said}, above {most:g}: it looks at something else than the finding."
        return verdict_gate("shortcuts", FAIL, said, left)
    if not _known(high) <= most:
        said = f"{said}, but could be {_shown(high)}: too few films to be sure of the allowed {most:g}."
        return verdict_gate("shortcuts", INSUFFICIENT, said, left)
    return _loss_gate("shortcuts", stress["border hidden"]["loss"], limits.max_border_loss, "a hidden border")


def _loss_gate(name: str, loss: Mapping[str, Any], allowed: float, change: str) -> dict[str, Any]:
    value, high = _known(loss["value"]), _known(loss["high"])
    verdict = PASS if high <= allowed else INSUFFICIENT if value <= allowed else FAIL
    said = f"The AUC falls by {_shown(loss['value'])}, at most {_shown(loss['high'])}, by {change}"
    reason = f"{said}; {allowed:g} is allowed."
    return {"name": name, **loss, "floor": allowed, "verdict": verdict, "reason": reason}


def unlike_films(evidence: Evidence) -> dict[str, Any]:
    """Test films come from where the training films do: hardly any may be called unlike them."""
    from pipeline.evaluation.novelty import novelty_check

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


def subgroups(
    evidence: Evidence, champion: Comparison | None = None, confidence: float | None = None
) -> list[dict[str, Any]]:
    """Returns sensitivity and specificity of every group of test films, with intervals that know of patients.

    Args:
        evidence: On the version.
        champion: Its comparison with the champion: then the groups are of the films compared.
        confidence: Of the intervals; that of its evaluation if None.

    Returns:
        For each group: group (name), films (how many each share is of), sensitivity and specificity; and
        champion, the same two shares of the champion, None where it was not compared.
    """
    if evidence.films is None:
        return []
    level = evidence.rules.confidence if confidence is None else confidence
    compared = champion is not None and champion.films is not None
    films = champion.films if compared else evidence.test
    known = evidence.films.assign(id=evidence.films["sha256"].str[:16]).drop_duplicates("id")
    test = films.drop(columns="sha256", errors="ignore").reset_index(drop=True)
    # Copies of a film have its id with a number behind it.
    groups = test[["id"]].assign(id=test["id"].str[:16]).merge(_groups(known), on="id", how="left")
    has = test["label"] == evidence.spec.positive_index
    flagged, patients = test["score"] >= evidence.spec.threshold, patient_numbers(test)
    theirs = test["score_other"] >= champion.other_threshold if compared else None
    found = []
    for column in groups.columns.drop("id"):
        title = column.removeprefix("group_").replace("age_band", "age")
        for value, rows in groups.groupby(column, observed=True).indices.items():
            part = has.iloc[rows], patients.iloc[rows], level
            own = _shares(flagged.iloc[rows], *part)
            other = _shares(theirs.iloc[rows], *part) if compared else None
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


def _shares(
    flagged: "pd.Series", has: "pd.Series", patients: "pd.Series", confidence: float
) -> dict[str, dict[str, Any]]:
    shares = operating_shares(has, flagged, patients, confidence)
    return {name: each.to_json() for name, each in shares.items()}


def _shown(number: float | None) -> str:
    return "unknown" if number is None or math.isnan(number) else f"{number:.3f}"
