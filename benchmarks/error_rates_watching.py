"""How often a watch puts a champion on hold: one that only met another share of the finding, and a worse one.

Runs the product's own judgement (`pipeline.monitoring.judging`, `asking`) with production's change plan on
drawn films: scores of two normal distributions (AUC 0.981, sensitivity 0.95 at specificity 0.90), looks that
differ between films with and without the finding, one to three films a patient, correlated by 0.5. Training
films have the finding in 74 %, calibration films (600) and test films (600) in 50 %.

Run: python benchmarks/error_rates_watching.py [--drawn 200]
Prints `name value limit PASS|FAIL`, in about four minutes on one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import yaml

from openmed.fitted.calibration import fit_calibration
from openmed.fitted.operating_point import choose_threshold
from openmed.gates.gate import FAIL
from openmed.monitoring.prior_shift import Known
from openmed.monitoring.sampled_performance import performance
from pipeline.evaluation.judgement import Rules
from pipeline.monitoring.asking import draw_films, drawn_with
from pipeline.monitoring.judging.checks import WARNING
from pipeline.monitoring.judging.judge import judge
from pipeline.monitoring.judging.looks import Looks
from pipeline.monitoring.judging.subject import Subject
from pipeline.settings.plan import Monitoring, load_plan

ROOT = Path(__file__).resolve().parent.parent
NORMAL = NormalDist()
CLASSES = np.array(["NORMAL", "PNEUMONIA"])
APART = 2.926
"""Distance of the two distributions in standard deviations: AUC 0.981."""
CORRELATION = 0.5
PLAN = load_plan(ROOT / "change_plan.production.yaml").protocol.monitoring
DRIFT = yaml.safe_load((ROOT / "params.production.yaml").read_text())["drift"] | {"replicates": 100}

Row = tuple[str, float, float, bool]


@dataclass(frozen=True)
class Champion:
    """A drawn champion: what the watch knows of it, and how its scores come about."""

    subject: Subject
    reference: pd.DataFrame
    slope: float
    intercept: float

    def films(self, rng: np.random.Generator, count: int, share: float, apart: float = APART) -> pd.DataFrame:
        """Draws new films with their true labels."""
        return draw(rng, count, share, apart).assign(score=lambda films: self.score(films["x"]))

    def score(self, x: pd.Series) -> np.ndarray:
        """Calibrated probabilities."""
        return 1 / (1 + np.exp(-(self.slope * x.to_numpy() + self.intercept)))

    def worse(self, loss: float) -> float:
        """Distance of the distributions at which so much of the sensitivity is lost."""
        limit = (np.log(self.subject.threshold / (1 - self.subject.threshold)) - self.intercept) / self.slope
        return limit - NORMAL.inv_cdf(NORMAL.cdf(limit - APART) + loss)


def draw(rng: np.random.Generator, count: int, share: float, apart: float = APART) -> pd.DataFrame:
    """Draws films: what the model sees of each (x), its looks, its label."""
    sizes = rng.integers(1, 4, count)
    patient = np.repeat(np.arange(count), sizes)[:count]
    having = (rng.random(count) < share)[patient]
    alike = rng.normal(size=count)[patient]
    x = np.sqrt(CORRELATION) * alike + np.sqrt(1 - CORRELATION) * rng.normal(size=count) + apart * having
    embedding = rng.normal(size=(count, 8)).astype(np.float32)
    embedding[:, 0] += x
    run = rng.integers(1 << 60)
    return pd.DataFrame(
        {
            "sha256": [
                f"{each:016x}{number:048x}" for number, each in enumerate(rng.integers(1 << 60, size=count))
            ],
            "patient": [f"{run:015x}-{each}" for each in patient],
            "x": x,
            "truth": CLASSES[having.astype(int)],
            "mean": rng.normal(110 + 10 * having, 18),
            "std": rng.normal(56 - 4 * having, 9),
            "width": rng.integers(1000, 1400, count),
            "height": rng.integers(900, 1300, count),
            "bits": 8,
            "embedding": list(embedding),
        }
    )


def champion(seed: int, test_films: int = 600, calibration_films: int = 600) -> Champion:
    """Draws a champion, calibrated and given its threshold on films of its own."""
    rng = np.random.default_rng(seed)
    calibration, test = draw(rng, calibration_films, 0.5), draw(rng, test_films, 0.5)
    labels = (calibration["truth"] == CLASSES[1]).to_numpy(int)
    logits = np.column_stack([np.zeros(len(calibration)), APART * calibration["x"] - APART**2 / 2])
    fitted = fit_calibration("platt", logits, labels, (0.0, 0.0))
    slope, intercept = fitted.scale * APART, fitted.bias[1] - fitted.bias[0] - fitted.scale * APART**2 / 2

    def score(films: pd.DataFrame) -> np.ndarray:
        return 1 / (1 + np.exp(-(slope * films["x"].to_numpy() + intercept)))

    threshold = choose_threshold(labels, score(calibration), 0.95)
    settings = {"target_sensitivity": 0.95, "threshold_confidence": None, "floors": {}}
    settings |= {"confidence": 0.95, "replicates": 50}
    rules = Rules.of({"evaluate": settings, "run": {"seed": seed}}, "the benchmark")
    subject = Subject(
        version="1",
        positive=CLASSES[1],
        threshold=threshold,
        rules=rules,
        params={"drift": DRIFT},
        test=performance(test["truth"] == CLASSES[1], score(test), test["patient"], threshold),
        known=Known(labels, score(calibration), calibration["patient"]),
        refers=None,
    )
    reference = draw(rng, 1000, 0.74).assign(label=lambda films: films["truth"])
    return Champion(subject, reference, slope, intercept)


class Watch:
    """One champion, watched again and again; labels come for all films, or for those that are asked for."""

    def __init__(
        self, model: Champion, asked: int | None, plan: Monitoring = PLAN, *, looks: bool = True
    ) -> None:
        self.model, self.asked, self.plan = model, asked, plan
        self.reference = model.reference if looks else None
        self.seen, self.spent, self.asks = pd.DataFrame(), Looks(), []
        self.held: set[str] = set()
        self.warned = False

    def take(self, films: pd.DataFrame) -> None:
        """Takes new films in and watches; `held` has the checks that hold the champion."""
        self.seen = pd.concat([self.seen, films], ignore_index=True)
        latest = self.seen.tail(self.plan.films)
        labelled = self._labelled(latest)
        found = judge(self.model.subject, self.plan, latest, self.reference, labelled, self.spent)
        self.warned |= found.verdict == WARNING
        self.held |= {check.name for check in found.checks if check.verdict == FAIL}

    def _labelled(self, latest: pd.DataFrame) -> dict[str, pd.DataFrame]:
        if self.asked is None:
            sides = self.seen.groupby("truth", sort=True)
            return {"measured": sides.tail(self.plan.films // 2)}
        known = set().union(*(ask.loc[ask["sample"], "sha256"] for ask in self.asks))
        drawn = draw_films(self.model.subject, latest[["sha256", "score"]], known, self.asked)
        self.asks.append(drawn.assign(ask=len(self.asks)))
        asks = pd.concat(self.asks)
        probability = drawn_with(asks, set(asks.loc[asks["sample"], "sha256"]))
        sampled = self.seen.assign(probability=self.seen["sha256"].map(probability))
        return {"sampled": sampled[sampled["probability"].notna()].tail(self.plan.films)}


def changed_share(seed: int, before: float, after: float, asked: int | None, watches: int = 6) -> Watch:
    """Watches a champion whose films, 500 at a time, change their share of the finding at the third watch."""
    rng, watch = np.random.default_rng(seed), Watch(champion(seed), asked)
    for number in range(watches):
        watch.take(watch.model.films(rng, 500, before if number < 2 else after))
    return watch


def lost_sensitivity(
    seed: int, share: float, asked: int | None, films: int, test_films: int = 600, healthy: int = 0
) -> int | None:
    """Watches a champion that loses ten points of sensitivity.

    Args:
        seed: Draws everything.
        share: Share of the finding among new films.
        asked: Films to label at each watch; None labels all.
        films: New films at each watch.
        test_films: Films of its test.
        healthy: Watches before the loss.

    Returns:
        How many films were labelled after the loss until it was held; None where the films that the plan
        judges were not enough, or it was held before.
    """
    rng, model = np.random.default_rng(seed), champion(seed, test_films)
    watch, count = Watch(model, asked, looks=False), asked or films
    for _ in range(healthy):
        watch.take(model.films(rng, films, share))
    if watch.held:
        return None
    for number in range(PLAN.films // count):
        watch.take(model.films(rng, films, share, model.worse(0.10)))
        if watch.held:
            return (number + 1) * count
    return None


def rows(drawn: int = 200) -> Iterator[Row]:
    """Yields what was promised of a watch: name, value, limit, whether it holds."""
    for before, after in ((0.5, 0.1), (0.2, 0.5)):
        watches = [changed_share(seed, before, after, None) for seed in range(drawn)]
        held = sum(bool(watch.held) for watch in watches) / drawn
        yield f"held-when-share-goes-{before:.0%}-to-{after:.0%}", held, 0.02, held <= 0.02
    for name, asked, films in (("all-labelled", None, 100), ("50-asked-for", 50, 1000)):
        count = drawn if asked is None else drawn // 2
        found = _share_held(lambda seed, a=asked, n=films: lost_sensitivity(seed, 0.5, a, n), count)
        yield f"loss-of-ten-points-held-{name}", found, 0.90, found >= 0.90


def told(drawn: int = 100) -> Iterator[tuple[str, float]]:
    """Yields what nothing is promised of: name, value."""
    yield (
        "loss-held-2000-test-films",
        _share_held(lambda seed: lost_sensitivity(seed, 0.5, None, 100, test_films=2000), drawn),
    )
    yield (
        "loss-held-after-1000-healthy-films",
        _share_held(lambda seed: lost_sensitivity(seed, 0.5, None, 100, healthy=10), drawn),
    )
    yield (
        "loss-held-50-asked-for-share-10%",
        _share_held(lambda seed: lost_sensitivity(seed, 0.1, 50, 1000), drawn),
    )
    watches = [changed_share(seed, 0.5, 0.1, 50) for seed in range(drawn)]
    yield "held-when-share-goes-50%-to-10%-50-asked-for", sum(bool(watch.held) for watch in watches) / drawn
    yield "warned-when-share-goes-50%-to-10%", sum(watch.warned for watch in watches) / drawn


def main() -> int:
    """Prints the rows; 0 when all hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drawn", type=int, default=200, help="drawn champions of each row")
    parser.add_argument("--told", action="store_true", help="also what nothing is promised of")
    options, good = parser.parse_args(), True
    for name, value, limit, passed in rows(options.drawn):
        print(f"{name} {value:.3f} {limit} {'PASS' if passed else 'FAIL'}", flush=True)
        good &= passed
    for name, value in told(options.drawn // 2) if options.told else ():
        print(f"{name} {value:.3f}", flush=True)
    return 0 if good else 1


def _share_held(lose: Callable[[int], int | None], drawn: int) -> float:
    return sum(lose(seed) is not None for seed in range(drawn)) / drawn


if __name__ == "__main__":
    sys.exit(main())
