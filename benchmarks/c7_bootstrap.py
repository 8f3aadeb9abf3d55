"""C7: nine metrics of 2,000 resamples, and their intervals, against a loop over scikit-learn.

The loop takes the rows of each resample and calls scikit-learn: the confusion matrix once, from which six
metrics follow, then AUC, average precision and Brier score. The resamples are ours, drawn beforehand and
handed to the loop as row numbers; ours draws them again within its time. All values of all resamples and the
reported intervals must agree to 1e-12. Scores are rounded to three decimals, so there are ties, and patients
have one to several films.

Run: OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/c7_bootstrap.py [--films 624 20000] [--part 1]
With --part below 1 the loop runs that part of the resamples, its time is divided by it, and the agreement is
checked on these; the output says so.
"""

import argparse
import sys

import numpy as np
from pairs import PAIRS, seconds, verdict
from sklearn.metrics import average_precision_score, brier_score_loss, confusion_matrix, roc_auc_score

from openmed.metrics.intervals import judged_intervals, metric_intervals
from openmed.metrics.resampling import Ranking, cohort, multiplicities

REPLICATES, SEED, THRESHOLD = 2000, 1, 0.5
TARGETS = {624: 80.0, 20_000: 8.0}


def films(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws labels (5 of 8 with the finding), scores and patients with 1.25 films on average."""
    rng = np.random.default_rng(count)
    labels = (np.arange(count) % 8 < 5).astype(np.int64)
    scores = np.round(1 / (1 + np.exp(-rng.normal(3.5 * labels - 1.5, 1.4))), 3)
    return labels, scores, rng.integers(0, count * 2, count)


def sklearn_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The nine metrics of one resample."""
    tn, fp, fn, tp = confusion_matrix(labels, scores >= THRESHOLD, labels=[0, 1]).ravel()
    return {
        "accuracy": (tp + tn) / len(labels),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "ppv": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "auc": roc_auc_score(labels, scores),
        "average_precision": average_precision_score(labels, scores),
        "brier": brier_score_loss(labels, scores),
    }


def sklearn_loop(labels: np.ndarray, scores: np.ndarray, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric of every resample, one resample after the other."""
    found = [sklearn_metrics(labels[pick], scores[pick]) for pick in rows]
    return {name: np.array([values[name] for values in found]) for name in found[0]}


def measure(count: int, pairs: int, part: float) -> bool:
    """Times both sides in turn at one size, checks that they agree and prints the verdict."""
    labels, scores, patients = films(count)
    group = cohort(labels, patients)
    drawn = np.concatenate(list(multiplicities(group, REPLICATES, SEED))).astype(np.int32)
    kept = round(part * REPLICATES)
    rows = [np.repeat(np.arange(count), row[group.patient_of_film]) for row in drawn[:kept]]
    results: dict = {}

    def ours(replicates: int = REPLICATES) -> None:
        results["ours"] = metric_intervals(
            labels, scores, patients, THRESHOLD, replicates=replicates, seed=SEED
        )

    def theirs() -> None:
        results["theirs"] = sklearn_loop(labels, scores, rows)

    ours()
    sklearn_loop(labels, scores, rows[:20])
    found = []
    for turn in range(pairs):
        slow, fast = seconds(theirs) / part, seconds(ours)
        found.append(slow / fast)
        print(f"{turn + 1}: loop {slow:.2f} s, ours {fast:.3f} s", flush=True)
    alone = seconds(lambda: [roc_auc_score(labels[pick], scores[pick]) for pick in rows]) / part
    print(f"a loop for the AUC alone takes {alone:.2f} s, {alone / seconds(ours):.3g} times our nine metrics")
    if part < 1:
        print(f"the loops ran {kept} of {REPLICATES} resamples; their time is stated for all of them")
        ours(kept)  # The first resamples of a seed are the same, however many follow.
    ranking = Ranking.of(labels, scores, THRESHOLD, group)
    chunks = [ranking.metrics(few.astype(float)) for few in np.array_split(drawn[:kept], -(-kept // 50))]
    mine = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    check(labels, scores, patients, mine, results)
    print(f"{count} films, {group.patients} patients: {kept} resamples and intervals agree")
    return verdict(f"C7-{count}", found, TARGETS.get(count, 1.0))


def check(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, mine: dict, results: dict) -> None:
    """Asserts that all values of all resamples, and the intervals made of them, agree to 1e-12."""
    point = sklearn_metrics(labels, scores)
    closed = judged_intervals(labels, scores, patients, THRESHOLD)
    for name, values in results["theirs"].items():
        np.testing.assert_allclose(mine[name], values, rtol=0, atol=1e-12, err_msg=name)
        low, high = np.quantile(values, [0.025, 0.975])
        if name in closed:  # these have limits in closed form
            low, high = closed[name].low, closed[name].high
        interval = results["ours"][name]
        reported = (interval.value, interval.low, interval.high)
        np.testing.assert_allclose(reported, (point[name], low, high), rtol=0, atol=1e-12, err_msg=name)


def main() -> int:
    """Measures every size and prints a verdict line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--part", type=float, default=1.0, help="part of the resamples that the loop runs")
    arguments = parser.parse_args()
    passed = [measure(count, arguments.pairs, arguments.part) for count in arguments.films]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
