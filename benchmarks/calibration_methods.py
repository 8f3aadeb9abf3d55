"""Which calibration to choose, and on how many films: all methods on one network's held-out films.

The films that an evaluate stage predicted are divided by patient, again and again, into calibration films and
films to judge on. Each method is fitted on the same calibration films, after the prior has been put back.

Run: python benchmarks/calibration_methods.py PREDICTIONS.parquet SUMMARY.json --positive PNEUMONIA
         [--films 60,100,300,800] [--draws 20]
PREDICTIONS is artifacts/evaluate/<architecture>/predictions.parquet, SUMMARY artifacts/resample/summary.json.
The ratio is the log loss of Platt's scaling over that of the plain softmax, at the most calibration films.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from pairs import verdict

from openmed.errors import BadInput
from openmed.fitted.calibration import METHODS, Calibration, fit_calibration, prior_correction
from openmed.metrics.calibration_error import calibration_summary


def drawn_films(patients: np.ndarray, films: int, seed: int) -> np.ndarray:
    """Draws whole patients until they have at least so many films; a mask (N,)."""
    names, place, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), films)) + 1
    return np.isin(place, order[:enough])


def compare(logits: np.ndarray, labels: np.ndarray, own: np.ndarray, correction, positive: int) -> list[dict]:
    """Fits every method on the films `own` and judges it on all others."""
    rows = []
    for method in ("softmax", *METHODS):
        try:
            fitted = (
                Calibration.of_prior((0.0,) * len(correction))
                if method == "softmax"
                else fit_calibration(method, logits[own], labels[own], correction)
            )
        except BadInput:  # too few films of a class for this method
            continue
        measured = calibration_summary(labels[~own], fitted.apply(logits[~own]), positive)
        rows.append({"method": method} | measured)
    return rows


def main() -> None:
    """Measures, prints the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("summary", type=Path)
    parser.add_argument("--positive", required=True)
    parser.add_argument("--films", default="60,100,300,800")
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    films = pd.read_parquet(arguments.predictions)
    counts = json.loads(arguments.summary.read_text())
    classes = list(counts["before"])
    correction = prior_correction(*([counts[when][name] for name in classes] for when in ("before", "after")))
    logits, labels = films[[f"logit_{name}" for name in classes]].to_numpy(), films["label"].to_numpy()
    parts = []
    for wanted in map(int, arguments.films.split(",")):
        for seed in range(arguments.draws):
            own = drawn_films(films["patient"].to_numpy(), wanted, seed)
            rows = compare(logits, labels, own, correction, classes.index(arguments.positive))
            parts.append(pd.DataFrame(rows).assign(films=wanted, draw=seed))
    table = pd.concat(parts)
    groups = table.groupby(["films", "method"], sort=False)
    means = groups[["log_loss", "brier", "ece", "slope", "intercept"]].mean()
    means["log_loss_sd"], means["draws"] = groups["log_loss"].std(), groups.size()
    print(means.round(4).to_string())
    most = table[table["films"] == table["films"].max()].pivot(
        index="draw", columns="method", values="log_loss"
    )
    verdict("calibration", (most["platt"] / most["softmax"]).dropna().tolist(), 1.0, at_least=False)


if __name__ == "__main__":
    main()
