"""How often a watch puts a champion on hold: one that only met another share of the finding, and a worse one.

Runs the product's own judgement (`pipeline.live.judging`, `asking`, `looks`) with the plan of production on drawn
films: scores of two normal distributions (AUC 0.981, sensitivity 0.95 at specificity 0.90), looks that differ
between films with and without the finding, one to three films a patient, correlated by 0.5. Training films have
the finding in 74 %, calibration and test films in 50 %.

    python -m benchmarks.error_rates_watching

Prints `name value limit PASS|FAIL`; takes about four minutes on one core.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import yaml

from openmed.metrics.calibration import fit_calibration
from openmed.metrics.operating_point import choose_threshold
from openmed.metrics.prior_shift import Known
from openmed.metrics.sampled_performance import performance
from pipeline.judgement import Rules
from pipeline.live.asking import draw_films, drawn_with
from pipeline.live.checks import WARNING
from pipeline.live.judging import judge
from pipeline.live.looks import Looks
from pipeline.live.subject import Subject
from pipeline.plan import Monitoring, load_plan

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
            "sha256": [f"{each:016x}{number:048x}" for number, each in enumerate(rng.integers(1 << 60, size=count))],
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
    rules = Rules(0.95, None, 0.95, 100, {}, seed)
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

    def __init__(self, model: Champion, asked: int | None, plan: Monitoring = PLAN, *, looks: bool = True) -> None:
        self.model, self.asked, self.plan = model, asked, plan
        self.reference = model.reference if looks else None
        self.seen, self.spent, self.asks, self.warned = pd.DataFrame(), Looks(), [], False

    def holds(self, films: pd.DataFrame) -> list[str]:
        """Takes new films in and watches; returns the checks that hold the champion."""
        self.seen = pd.concat([self.seen, films], ignore_index=True)
        latest = self.seen.tail(self.plan.films)
        labelled = self._labelled(latest)
        found = judge(self.model.subject, self.plan, latest, self.reference, labelled, self.spent)
        self.warned |= found.verdict == WARNING
        return [check["name"] for check in found.checks if check["verdict"] == "FAIL"]

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


def changed_share(seed: int, before: float, after: float, asked: int | None, watches: int = 8) -> Watch | None:
    """Watches a champion whose films change their share of the finding; returns the watch that held, or None."""
    rng, watch = np.random.default_rng(seed), Watch(champion(seed), asked)
    for number in range(watches):
        if watch.holds(watch.model.films(rng, 500, before if number < 2 else after)):
            return watch
    return None


def lost_sensitivity(
    seed: int, share: float, asked: int | None, films: int, loss: float = 0.10, healthy: int = 0
) -> int | None:
    """Watches a champion that loses sensitivity; returns the labelled films until the hold, None without one."""
    rng, model = np.random.default_rng(seed), champion(seed)
    watch, count = Watch(model, asked, looks=False), asked or 100
    for _ in range(healthy):
        if watch.holds(model.films(rng, films, share)):
            return None
    for number in range(PLAN.films // count):
        if watch.holds(model.films(rng, films, share, model.worse(loss))):
            return (number + 1) * count
    return None
