"""What a version must show on its test films beyond the floors of its evaluation."""

import math

from openmed.fitted.operating_point import transfer_chance
from openmed.gates.gate import FAIL, INSUFFICIENT, PASS, Gate, judge
from openmed.gates.power import auc_floor, proportion_floor
from openmed.metrics.calibration_error import slope_interval, unbiased_calibration_error
from openmed.metrics.clinical_utility import net_benefit_gain
from openmed.metrics.clustered import clustered_share, operating_shares
from pipeline.evaluation.judgement import at_threshold, patient_numbers
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.subgroups import subgroups

_CONCERNS = {"sensitivity": "with the finding", "specificity": "without the finding"}


def floor_gates(evidence: Evidence) -> list[Gate]:
    """The gates of its evaluation; from the second look at its test patients on with surer limits."""
    if evidence.look == 1:
        return evidence.gates
    rules = evidence.rules_of_look
    return judge(at_threshold(evidence.test, evidence.spec, rules.confidence), rules.floors)[1]


def performance_gates(evidence: Evidence) -> list[Gate]:
    """Gives the gates on operating point, probabilities, benefit, groups, sites and hidden parts."""
    gates = [gate(evidence) for gate in (transfer, calibration, net_benefit, _subgroups)]
    return [*gates, *_at_sites(evidence), _shortcuts(evidence)]


def limits_of_the_test(evidence: Evidence) -> list[str]:
    """Says, a sentence for each floor, what this test set could have shown, whatever it did show."""
    test, rules = evidence.test, evidence.rules
    positives = int((test["label"] == evidence.spec.positive_index).sum())
    negatives, sentences = len(test) - positives, []
    for name, floor in rules.floors.items():
        if not 0 < floor < 1 or not positives or not negatives:
            continue
        if name == "auc":
            shown = auc_floor(floor, positives, negatives, confidence=rules.confidence)
        else:
            films = positives if name == "sensitivity" else negatives
            # What the threshold was chosen for; of the specificity nothing was planned.
            planned = rules.target_sensitivity if name == "sensitivity" else None
            kind = f"films {_CONCERNS[name]}"
            shown = proportion_floor(floor, films, planned, name=name, kind=kind, confidence=rules.confidence)
        sentences.append(shown.sentence)
    return sentences


def transfer(evidence: Evidence) -> Gate:
    """Whether the test films can be from where the calibration films are, by their sensitivities."""
    rules, films = evidence.rules, evidence.predictions
    has = films[films["label"] == evidence.spec.positive_index]
    parts = [has[has["split"] == split] for split in ("calibration", "test")]
    before, now = ((part["score"] >= evidence.spec.operating_point, patient_numbers(part)) for part in parts)
    chance = transfer_chance(*before, *now)
    reached, chosen = clustered_share(*now, rules.confidence), float(before[0].mean())
    sentence = (
        f"At the threshold the sensitivity is {_shown(chosen)} on {len(parts[0])} calibration films and "
        f"{_shown(reached.value)} on {len(parts[1])} test films"
    )
    if chance > evidence.error_share / 2:
        verdict, rest = PASS, f"; films of one kind differ as much in {chance:.0%} of such tests."
    else:
        verdict, rest = FAIL, ", which chance does not explain: the two differ in kind."
    return Gate.of("threshold transfer", reached, chosen, verdict, sentence + rest)


def calibration(evidence: Evidence) -> Gate:
    """Probabilities must not be surely off, on average or in their slope, by more than the plan allows."""
    limits, confidence = evidence.plan.protocol.evaluation, 1 - evidence.error_share
    test = evidence.test
    judged_on = test["label"] == evidence.spec.positive_index, test["score"], patient_numbers(test)
    error = unbiased_calibration_error(*judged_on, confidence)
    slope = slope_interval(*judged_on, confidence)
    most, allowed = limits.max_calibration_error, limits.calibration_slope
    sentence = f"Probabilities are off by {error.value:.3f} (at least {error.low:.3f}); {most:g} is allowed"
    failed = error.low > most
    if math.isnan(slope.value):
        sentence += "; the scores separate the classes, so they have no slope"
    else:
        sentence += f"; their slope is {slope.value:.2f} ({slope.low:.2f} to {slope.high:.2f}, best is 1)"
        if allowed is not None:
            failed |= slope.high < allowed[0] or slope.low > allowed[1]
            sentence += f", {allowed[0]:g} to {allowed[1]:g} is allowed"
    return Gate.of("calibration", error, most, FAIL if failed else PASS, f"{sentence}.")


def net_benefit(evidence: Evidence) -> Gate:
    """Acting on the model must be worth more than flagging every film or none, where the finding is rare."""
    test, setting = evidence.test, evidence.plan.protocol.evaluation.net_benefit
    shares = operating_shares(
        test["label"] == evidence.spec.positive_index,
        test["score"] >= evidence.spec.operating_point,
        patient_numbers(test),
        evidence.rules_of_look.confidence,
    )
    odds = setting.threshold_probability / (1 - setting.threshold_probability)
    gains = {}
    # The gain is a straight line in the odds on either side of the prevalence, where all and none are equal.
    for factor in (1 / setting.odds_range, 1.0, setting.odds_range):
        wavering = odds * factor / (1 + odds * factor)
        gains[wavering] = net_benefit_gain(
            **shares, threshold_probability=wavering, prevalence=setting.prevalence
        )
    wavering, gain = min(gains.items(), key=lambda item: (not math.isnan(item[1].low), item[1].low))
    above = setting.above
    verdict = PASS if gain.low > above else INSUFFICIENT if gain.value > above else FAIL
    sentence = (
        f"At a prevalence of {setting.prevalence:g}, for whoever would look again at a film from a "
        f"probability of {min(gains):.2g} to {max(gains):.2g} on, acting on the model gains "
        f"{_shown(gain.value)} (at least {_shown(gain.low)}, at {wavering:.2g}) true positives a film over "
        "the better of flagging every film and none."
    )
    return Gate.of("net benefit", gain, above, verdict, sentence)


def _subgroups(evidence: Evidence) -> Gate:
    """No group of films may be surely worse served than the plan accepts; one error rate over all groups."""
    settings, name = evidence.plan.protocol.evaluation.subgroups, "subgroups"
    if evidence.films is None:
        why = "Nothing is known of the films of this version, so no group could be judged: register it again."
        return Gate.plain(name, INSUFFICIENT, why)
    sizes = [
        group.films[share] >= settings.min_films for group in subgroups(evidence) for share in settings.floors
    ]
    judged, small = sum(sizes), len(sizes) - sum(sizes)
    if not judged:
        why = f"None of {small} shares of groups rests on {settings.min_films} films: no group is judged."
        return Gate.plain(name, INSUFFICIENT, why)
    # Bonferroni: of many groups that are just good enough, one fails by chance no oftener than one alone.
    level = 1 - evidence.error_share / judged
    below = [
        f"{share} in {group.group} is {group.shares[share].value:.3f}, surely below {floor:g}"
        for group in subgroups(evidence, confidence=level)
        for share, floor in settings.floors.items()
        if group.films[share] >= settings.min_films and not group.shares[share].high >= floor
    ]
    if below:
        return Gate.plain(name, FAIL, f"{'; '.join(below)}.", len(below))
    sentence = f"None of {judged} judged shares of subgroups is surely below its floor"
    return Gate.plain(name, PASS, f"{sentence}; {small} have too few films.", 0)


def _at_sites(evidence: Evidence) -> list[Gate]:
    """The frozen threshold must serve at every simulated site, the worst one included."""
    floors = evidence.plan.protocol.evaluation.stress.site_floors
    if floors is None:
        why = "The change plan of this version is older than simulated sites and names no floors for them."
        return [Gate.plain("robustness", INSUFFICIENT, why)]
    return [_robustness(evidence, share, floor) for share, floor in floors.items()]


def _robustness(evidence: Evidence, share: str, floor: float) -> Gate:
    worst = evidence.measured.sites["test"].worst[share]
    # What could not be measured is below any floor.
    verdict = PASS if worst.low >= floor else INSUFFICIENT
    verdict = verdict if worst.value >= floor else FAIL
    reason = (
        f"At the worst simulated site ({worst.site}) the {share} is {_shown(worst.value)} and could be "
        f"{_shown(worst.low)}; {floor:g} is required."
    )
    return Gate.of(f"robustness {share}", worst, floor, verdict, reason)


def _shortcuts(evidence: Evidence) -> Gate:
    """A model that needs the border, or does not need the lungs, looks at something else than the finding."""
    limits, stress = evidence.plan.protocol.evaluation.stress, evidence.measured.stress
    most, lungs = limits.max_auc_without_lungs, stress["lungs hidden"]
    # Evidence of before has no limits of it.
    left, high = lungs.auc, lungs.auc if math.isinf(lungs.auc_high) else lungs.auc_high
    sentence = f"With both lungs hidden its AUC is {_shown(left)}"
    if not left <= most:
        sentence = f"{sentence}, above {most:g}: it looks at something else than the finding."
        return Gate.plain("shortcuts", FAIL, sentence, left)
    if not high <= most:
        sentence = (
            f"{sentence}, but could be {_shown(high)}: too few films to be sure of the allowed {most:g}."
        )
        return Gate.plain("shortcuts", INSUFFICIENT, sentence, left)
    loss, allowed = stress["border hidden"].loss, limits.max_border_loss
    verdict = PASS if loss.high <= allowed else INSUFFICIENT if loss.value <= allowed else FAIL
    sentence = f"The AUC falls by {_shown(loss.value)}, at most {_shown(loss.high)}, by a hidden border"
    return Gate.of("shortcuts", loss, allowed, verdict, f"{sentence}; {allowed:g} is allowed.")


def unlike_films(evidence: Evidence) -> Gate:
    """Test films come from where the training films do: hardly any may be called unlike them."""
    from pipeline.evaluation.novelty import novelty_check

    allowed, name = evidence.plan.protocol.evaluation.max_unlike, "unlike films"
    if allowed is None:
        return Gate.plain(name, PASS, "The change plan says nothing of films referred as unlike.")
    unlike = novelty_check(evidence.rules, evidence.spec, evidence.test)
    if unlike is None:
        why = "It tells no films unlike those that it learnt from: set evaluate.unlike_share and retrain."
        return Gate.plain(name, FAIL, why)
    films, surely = len(evidence.test), unlike.referred.low > allowed
    sentence = f"Of {films} test films {unlike.films} are referred as unlike those that it learnt from"
    rest = f", surely more than {allowed:.0%}." if surely else f"; {allowed:.0%} is allowed."
    return Gate.of(name, unlike.referred, allowed, FAIL if surely else PASS, sentence + rest)


def _shown(number: float) -> str:
    return "unknown" if math.isnan(number) else f"{number:.3f}"
