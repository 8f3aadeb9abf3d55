"""How often the gates err, by simulated retrainings that are judged by the gates' own code.

Scores are normal with equal spread in both classes: a share of the variance is common to the films of a
patient, seven tenths of it to the two models that are compared. Probabilities are what such scores mean, so
they are calibrated. Half of the films have the finding. A good champion has a sensitivity of 0.95, a
specificity of 0.90 and an AUC of 0.981. Prints `name: value limit PASS|FAIL`, of each promise the worst case.

What needs films or networks (simulated sites, hidden parts, unlike films, export) is not simulated: whole
verdicts here are those of floors, threshold transfer, calibration, net benefit and the comparison.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from openmed.gates.gate import PASS, judge
from openmed.metrics.intervals import judged_intervals, paired_difference
from pipeline import registry
from pipeline.evaluation.judgement import operating_threshold
from pipeline.evaluation.metrics_file import Metrics
from pipeline.evaluation.rules import Rules
from pipeline.promotion.gates.comparison import CHAMPION, difference_gates
from pipeline.promotion.gates.evidence import Evidence, confidence_of_look
from pipeline.promotion.gates.performance import calibration, floor_gates, net_benefit, transfer
from pipeline.promotion.gates.verdict import joint_verdict
from pipeline.settings.plan import load_plan

ROOT = Path(__file__).parents[1]
GOOD = {"auc": 0.981, "sensitivity": 0.95, "specificity": 0.90}
TESTS = (60, 120, 300, 600, 2000)
POSITIVES = (30, 60, 130, 300, 1000)
COMMON_TO_MODELS = 0.7


@dataclass(frozen=True)
class Films:
    """Films of a simulated cohort: `most` of a patient at most, as many as that equally often."""

    most: int
    agreement: float
    """Share of the variance of the scores that is common to the films of a patient."""

    @property
    def title(self) -> str:
        """For a printed row."""
        often = "1 film" if self.most == 1 else f"1 to {self.most} films"
        return f"{often} a patient, correlation {self.agreement:g}"


COHORTS = (Films(1, 0.0), Films(3, 0.0), Films(3, 0.5), Films(10, 0.0), Films(10, 0.5))


@dataclass(frozen=True)
class Row:
    """A promise and what was found."""

    name: str
    value: float
    limit: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.3f} {self.limit} {'PASS' if self.passed else 'FAIL'}"


def at_most(name: str, value: float, limit: float) -> Row:
    """A rate that must not be above a limit."""
    return Row(name, value, f"<={limit:g}", value <= limit)


def at_least(name: str, value: float, limit: float) -> Row:
    """A rate that must not be below a limit."""
    return Row(name, value, f">={limit:g}", value >= limit)


class Simulation:
    """Draws cohorts and scores."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def patients(self, films: int, of: Films) -> NDArray[np.intp]:
        """Patient of each of so many films."""
        sizes = self.random.integers(1, of.most + 1, films)
        return np.repeat(np.arange(films), sizes)[:films]

    def cohort(self, having: int, without: int, of: Films) -> tuple[NDArray, NDArray]:
        """Labels and patients."""
        first = self.patients(having, of)
        second = self.patients(without, of) + first[-1] + 1
        return np.repeat([1, 0], [having, without]), np.concatenate([first, second])

    def scores(self, labels: NDArray, patients: NDArray, of: Films, aucs: Sequence[float]) -> list[NDArray]:
        """Probabilities of one or more models on the same films."""
        people, films = int(patients.max()) + 1, len(labels)
        share = COMMON_TO_MODELS if len(aucs) > 1 else 0.0
        person, film = self._normal(people), self._normal(films)
        found = []
        for auc in aucs:
            own_person = np.sqrt(share) * person + np.sqrt(1 - share) * self._normal(people)
            own_film = np.sqrt(share) * film + np.sqrt(1 - share) * self._normal(films)
            noise = np.sqrt(of.agreement) * own_person[patients] + np.sqrt(1 - of.agreement) * own_film
            found.append(probability(separation(auc) * labels + noise, auc))
        return found

    def _normal(self, count: int) -> NDArray:
        return self.random.standard_normal(count)


def separation(auc: float) -> float:
    """How far the classes lie apart, in standard deviations."""
    return float(np.sqrt(2) * norm.ppf(auc))


def probability(score: NDArray | float, auc: float) -> NDArray:
    """What a score means where half of the films have the finding."""
    apart = separation(auc)
    return expit(apart * (np.asarray(score) - apart / 2))


def threshold_for(sensitivity: float, auc: float) -> float:
    """The probability from which on that share of the films with the finding is flagged."""
    return float(probability(separation(auc) - norm.ppf(sensitivity), auc))


def sensitivity_at(threshold: float, auc: float) -> float:
    """The share of the films with the finding whose probability is at or above a threshold."""
    apart = separation(auc)
    return float(norm.sf(logit(threshold) / apart + apart / 2 - apart))


def intervals(simulation: Simulation, repeats: int) -> Iterator[tuple[str, Films, int, float, float, float]]:
    """Of every metric, cohort and size: limits below and above the truth, as shares of repeats."""
    threshold = threshold_for(GOOD["sensitivity"], GOOD["auc"])
    specificity = float(norm.cdf(separation(GOOD["auc"]) - norm.ppf(GOOD["sensitivity"])))
    truth = GOOD | {"specificity": specificity}
    for of, films in product(COHORTS, TESTS):
        above, below = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
        for _ in range(repeats):
            labels, patients = simulation.cohort(films // 2, films // 2, of)
            (scores,) = simulation.scores(labels, patients, of, [GOOD["auc"]])
            found = judged_intervals(labels, scores, patients, threshold)
            for name, true in truth.items():
                above[name] += found[name].low > true
                below[name] += found[name].high < true
        for name in truth:
            yield name, of, films, above[name] / repeats, below[name] / repeats, repeats


def interval_rows(simulation: Simulation, repeats: int) -> Iterator[Row]:
    """Lower limits above the truth, and coverage."""
    found = list(intervals(simulation, repeats))
    for most, limit in ((3, 0.035), (10, 0.05)):
        cases = [case for case in found if (case[1].most <= 3) == (most == 3)]
        worst = max(cases, key=lambda case: case[3])
        yield at_most(
            f"lower limits above the truth, up to {most} films a patient ({_case(worst)})", worst[3], limit
        )
    covered = {case: 1 - case[3] - case[4] for case in found}
    low, high = min(found, key=covered.get), max(found, key=covered.get)
    yield at_least(f"lowest coverage ({_case(low)})", covered[low], 0.93)
    yield at_most(f"highest coverage ({_case(high)})", covered[high], 0.99)


def _case(case: tuple) -> str:
    return f"{case[0]}, {case[2]} films, {case[1].title}"


def margin_rows(simulation: Simulation, repeats: int) -> Iterator[Row]:
    """How often a model exactly at the margin passes as not inferior."""
    margins = load_plan(ROOT / "change_plan.production.yaml").protocol.evaluation.margins
    worse = {"auc": GOOD["auc"] - margins["auc"], "sensitivity": GOOD["sensitivity"] - margins["sensitivity"]}
    aucs = (worse["auc"], GOOD["auc"])
    thresholds = threshold_for(worse["sensitivity"], aucs[0]), threshold_for(GOOD["sensitivity"], aucs[1])
    for clustered in (False, True):
        rates = {}
        for of, films in product([each for each in COHORTS if (each.most > 1) == clustered], POSITIVES):
            passed = dict.fromkeys(worse, 0)
            for _ in range(repeats):
                labels, patients = simulation.cohort(films, films, of)
                scores = simulation.scores(labels, patients, of, aucs)
                found = paired_difference(labels, *scores, patients, *thresholds)
                for name in worse:
                    passed[name] += found[name].low >= -margins[name]
            for name in worse:
                rates[name, of, films] = passed[name] / repeats
        for name in worse:
            (_, of, films), rate = max(
                ((key, rate) for key, rate in rates.items() if key[0] == name), key=lambda item: item[1]
            )
            title = f"not inferior at the margin of {name} ({films} with the finding, {of.title})"
            yield at_most(title, rate, 0.05 if clustered else 0.03)


class Judges:
    """Judges simulated retrainings by production's settings and plan."""

    def __init__(self, simulation: Simulation, of: Films) -> None:
        self.simulation, self.of = simulation, of
        self.params = yaml.safe_load((ROOT / "params.production.yaml").read_text())
        self.plan_file = ROOT / "change_plan.production.yaml"
        self.plan = load_plan(self.plan_file)
        shares = self.params["split"]["shares"]
        self._calibration = shares["calibration"] / shares["test"]

    def verdict(
        self, films: int, auc: float, *, shift: float = 0.0, shuffled: bool = False, look: int = 1
    ) -> str:
        """Verdict on a challenger of which the AUC is given, against a good champion.

        Args:
            films: Test films.
            auc: Of the challenger.
            shift: How far its sensitivity on test films is below the champion's, at the thresholds that both
                got from calibration films.
            shuffled: Whether its scores have nothing to do with the films.
            look: Which look at the test patients it is.
        """
        table, champion = self._films(films, auc, shuffled=shuffled)
        evidence = self.evidence(table, look=look)
        if shift:
            own, other = (
                sensitivity_at(at, GOOD["auc"])
                for at in (evidence.spec.operating_point, champion["threshold"])
            )
            lost = max(0.0, 1 - (other - shift) / own)
            evidence = self.evidence(self._less_sensitive(table, evidence, lost), look=look)
        compared = evidence.test.assign(score_other=champion["scores"])
        compared["label"] = compared["label"].astype(int)
        gates = [*floor_gates(evidence), transfer(evidence), calibration(evidence), net_benefit(evidence)]
        margins = evidence.margins
        comparison = difference_gates(evidence, compared, champion["threshold"], CHAMPION, margins)
        return joint_verdict(gates, comparison)

    def evidence(self, table: pd.DataFrame, look: int) -> Evidence:
        """Evidence on a version that holds what the gates used here read."""
        finding = self.params["task"]["positive"]
        spec = SimpleNamespace(positive=finding, findings=(finding,), positive_index=1, operating_point=0.5)
        made = Evidence(
            version="simulated",
            files=registry.Files("simulated", {}, ""),
            tags={},
            spec=spec,
            params=self.params,
            plan_file=self.plan_file,
            plan_sha256="",
            metrics=Metrics("simulated"),
            gates=[],
            predictions=table,
            split=table,
            films=None,
            external=table.iloc[:0],
            look=look,
        )
        made.__dict__["plan"] = self.plan
        spec.operating_point = operating_threshold(table, 1, made.rules)
        test, rules = made.test, made.rules
        found = judged_intervals(
            test["label"], test["score"], test["patient"], spec.operating_point, rules.confidence
        )
        made.gates.extend(judge(found, rules.floors)[1])
        return made

    def _films(self, films: int, auc: float, *, shuffled: bool) -> tuple[pd.DataFrame, dict]:
        """A table of predictions of the challenger; threshold and test scores of the champion."""
        parts = []
        for split, count in (("calibration", round(films * self._calibration)), ("test", films)):
            labels, patients = self.simulation.cohort(count // 2, count // 2, self.of)
            scores = self.simulation.scores(labels, patients, self.of, (auc, GOOD["auc"]))
            if shuffled:
                scores[0] = self.simulation.random.permutation(scores[0])
            names = [f"{split[0]}{number:06d}" for number in patients]
            table = {
                "split": split,
                "label": labels,
                "score": scores[0],
                "other": scores[1],
                "patient": names,
            }
            parts.append(pd.DataFrame(table))
        both = pd.concat(parts, ignore_index=True).assign(
            id=lambda table: [f"{k:016d}" for k in range(len(table))]
        )
        # The champion's threshold comes from films of its own time.
        labels, patients = self.simulation.cohort(*[round(films * self._calibration) // 2] * 2, self.of)
        (scores,) = self.simulation.scores(labels, patients, self.of, [GOOD["auc"]])
        names = [f"p{number:06d}" for number in patients]
        own = pd.DataFrame({"split": "calibration", "label": labels, "score": scores, "patient": names})
        own["id"] = [f"{k:016d}" for k in range(len(own))]
        threshold = operating_threshold(own, 1, Rules.of(self.params, "production"))
        champion = {"threshold": threshold, "scores": both.loc[both["split"] == "test", "other"].to_numpy()}
        return both.drop(columns="other"), champion

    def _less_sensitive(self, table: pd.DataFrame, evidence: Evidence, share: float) -> pd.DataFrame:
        """Lets the model miss a share of the test films that it would find."""
        found = (
            (table["split"] == "test")
            & (table["label"] == 1)
            & (table["score"] >= evidence.spec.operating_point)
        )
        lost = found & (self.simulation.random.random(len(table)) < share)
        return table.assign(score=table["score"].where(~lost, table["score"] * 0.2))


def verdict_rows(simulation: Simulation, repeats: int) -> Iterator[Row]:
    """How often whole verdicts are PASS, for a challenger whose truth is known."""
    good = GOOD["auc"]
    better = auc_where(GOOD["sensitivity"] + 0.03, GOOD["specificity"])
    worse = auc_where(GOOD["sensitivity"] - 0.05, GOOD["specificity"])
    # With several films a patient it takes more films to have as many patients.
    for of, more in ((COHORTS[0], 1), (COHORTS[2], 2)):
        judges = Judges(simulation, of)

        def passed(times: int, films: int, auc: float, judges: Judges = judges, **how: Any) -> float:
            return float(np.mean([judges.verdict(films, auc, **how) == PASS for _ in range(times)]))

        few, many = 600 * more, 2000 * more
        yield at_least(f"equal, {few} films, {of.title}", passed(repeats, few, good), 0.80)
        yield at_least(f"equal, {many} films, {of.title}", passed(repeats, many, good), 0.95)
        yield at_least(f"three points better, {few} films, {of.title}", passed(repeats, few, better), 0.95)
        for films, limit in ((few, 0.05), (many, 0.01)):
            title = f"{films} films, {of.title}"
            lost = passed(repeats, films, good, shift=0.05)
            yield at_most(
                f"five points less sensitive by its curve, {title}", passed(repeats, films, worse), limit
            )
            yield at_most(f"five points less sensitive on the test films, {title}", lost, limit)
        yield at_most(
            f"shuffled, {few} films, {of.title}", passed(repeats // 4, few, 0.5, shuffled=True), 0.0
        )


def auc_where(sensitivity: float, specificity: float) -> float:
    """The AUC of scores that reach both at one threshold."""
    return float(norm.cdf((norm.ppf(sensitivity) + norm.ppf(specificity)) / np.sqrt(2)))


def look_rows(simulation: Simulation, repeats: int) -> Iterator[Row]:
    """All looks of the plan used up on models exactly at a floor, on the same test films."""
    judges = Judges(simulation, COHORTS[0])
    floors, looks = judges.params["evaluate"]["floors"], judges.plan.protocol.evaluation.looks
    for name, films in product(floors, (120, 600)):
        auc = floors["auc"] if name == "auc" else GOOD["auc"]
        let_through = 0
        for _ in range(repeats):
            labels, patients = simulation.cohort(films // 2, films // 2, COHORTS[0])
            # What the models of all looks have in common is drawn once.
            scores = simulation.scores(labels, patients, COHORTS[0], [auc] * looks)
            let_through += any(
                _passes_floor(judges, labels, patients, values, name, auc, look)
                for look, values in enumerate(scores, start=1)
            )
        title = f"any of {looks} looks at models at the floor of {name} passes it, {films} films"
        yield at_most(title, let_through / repeats, 0.05)


def _passes_floor(
    judges: Judges, labels: NDArray, patients: NDArray, scores: NDArray, name: str, auc: float, look: int
) -> bool:
    floor = judges.params["evaluate"]["floors"][name]
    specific = float(probability(norm.ppf(floor), auc))
    threshold = threshold_for(floor, auc) if name != "specificity" else specific
    confidence = confidence_of_look(judges.params["evaluate"]["confidence"], look)
    found = judged_intervals(labels, scores, patients, threshold, confidence)
    return judge({name: found[name]}, {name: floor})[0] == PASS


def transfer_rows(simulation: Simulation, repeats: int) -> Iterator[Row]:
    """How often honest test films are told to be of another kind than the calibration films."""
    rates = {}
    for of, films in product(COHORTS, TESTS):
        judges, doubted, judged = Judges(simulation, of), 0, 0
        judges.params["evaluate"]["threshold_confidence"] = None
        for _ in range(repeats):
            table, _ = judges._films(films, GOOD["auc"], shuffled=False)
            judged += 1
            doubted += transfer(judges.evidence(table, look=1)).verdict != PASS
        rates[f"{films} films, {of.title}"] = doubted / judged
    worst = max(rates, key=rates.get)
    yield at_most(f"threshold transfer fails an honest model ({worst})", rates[worst], 0.03)


def watch_rows(_: Simulation, repeats: int) -> Iterator[Row]:
    """What is promised of watching a champion; see error_rates_watching.py, the slowest of all."""
    from error_rates_watching import rows

    for name, value, limit, held in rows(repeats):
        yield Row(name, value, f"{'<=' if limit < 0.5 else '>='}{limit:g}", held)


SECTIONS: dict[str, tuple[Callable[[Simulation, int], Iterator[Row]], int]] = {
    "intervals": (interval_rows, 2500),
    "margins": (margin_rows, 1500),
    "verdicts": (verdict_rows, 400),
    "looks": (look_rows, 400),
    "transfer": (transfer_rows, 300),
    "watching": (watch_rows, 200),
}


def main() -> int:
    """Simulates what is asked and prints a row for each promise; 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="Sections, with commas.")
    parser.add_argument("--effort", type=float, default=1.0, help="Times the usual number of repeats.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.only.split(","):
        rows, repeats = SECTIONS[name]
        for row in rows(Simulation(arguments.seed), max(4, round(repeats * arguments.effort))):
            print(row, flush=True)
            missed += not row.passed
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
