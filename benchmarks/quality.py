"""Quality of the three architectures on real films, by the pipeline's own stages.

Imports the films, splits them by patient, trains every architecture from scratch with every seed at a small
input size, and prints a table: AUC, sensitivity and specificity at the frozen threshold with intervals over
patients, calibration before and after, seconds an epoch; then means over views of a film and over the
networks. The test films are those patients that the split put aside; nothing was chosen on them.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from openmed.data.importing import import_films
from openmed.files import read_json
from openmed.metrics.intervals import bootstrap
from openmed.metrics.operating_point import choose_threshold
from openmed.models.ensemble import Ensemble
from openmed.models.session import load_predictor
from pipeline import evaluate, preprocess, resample, split, train, validate
from pipeline.params import Params, load_params
from pipeline.stage import SPLIT

ROOT = Path(__file__).parents[1]
SIZES_PX = {"resnet50": 96, "vit": 96, "inceptionv3": 128}
MEASURED = ("auc", "sensitivity", "specificity", "brier")


def main() -> int:
    """Runs the stages and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Folder or zip of class folders.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="Use about this many films, whole patients.")
    parser.add_argument("--architectures", default=",".join(SIZES_PX))
    arguments = parser.parse_args()
    films, names, rows = arguments.films.resolve(), arguments.architectures.split(","), []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ["OPENMED_HOME"] = str(Path(scratch) / "home")
        shutil.copy(ROOT / "decisions.csv", ".")
        import_films(films, Path("data"), class_names=("NORMAL", "PNEUMONIA"), limit=arguments.limit)
        for seed in range(arguments.seeds):
            params = _params(names, arguments.epochs, seed)
            for stage in (validate, split, preprocess, resample):
                stage.run(params)
            rows += [_trained(params, name, seed) for name in names]
            rows += _means(params, names, seed)
    columns = rows[0].keys()
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(str(row[column]) for column in columns)} |")
    return 0


def _params(names: list[str], epochs: int, seed: int) -> Params:
    """The sample's settings with more epochs and larger inputs; networks at their published size."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["run"]["seed"] = seed
    content["architectures"] = names
    content["preprocess"]["image_size_px"] = SIZES_PX
    for name in names:
        content["train"][name]["finetune"]["epochs"] = epochs
        content["train"][name]["patience_epochs"] = epochs
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_params()


def _trained(params: Params, name: str, seed: int) -> dict[str, object]:
    started = time.perf_counter()
    train.run(params, name)
    seconds = time.perf_counter() - started
    evaluate.run(params, name)
    metrics = read_json(Path("artifacts/evaluate", name, "metrics.json"))
    epochs = read_json(Path("artifacts/train", name, "summary.json"))["epochs"]
    steps = metrics["reliability"]
    error = f"{steps['softmax']['ece']:.3f}, {steps['calibrated']['ece']:.3f}"
    about = {"network": f"{name} {SIZES_PX[name]} px", "seed": seed, "films": metrics["test"]["n"]}
    measured = {key: _shown(metrics["test"][key]) for key in MEASURED}
    return about | measured | {"ECE before, after": error, "s an epoch": f"{seconds / epochs:.0f}"}


def _means(params: Params, names: list[str], seed: int) -> list[dict[str, object]]:
    """Each network over five views of a film, and all of them together; thresholds from calibration films."""
    alone = [load_predictor(Path("artifacts/evaluate", name, "model")) for name in names]
    ways = {
        f"{name}, five views": Ensemble([one], views=True) for name, one in zip(names, alone, strict=True)
    }
    if len(alone) > 1:
        ways |= {"all together": Ensemble(alone), "all, five views": Ensemble(alone, views=True)}
    films = pd.read_parquet(SPLIT)
    return [_judged(params, way, seed, ensemble, films) for way, ensemble in ways.items()]


def _judged(
    params: Params, way: str, seed: int, ensemble: Ensemble, films: pd.DataFrame
) -> dict[str, object]:
    parts = {name: films[films["split"] == name].reset_index(drop=True) for name in ("calibration", "test")}
    index, scores, has = ensemble.spec.positive_index, {}, {}
    for name, part in parts.items():
        squares = {size: evaluate.pixels_of(part, size) for size in ensemble.sizes_px}
        scores[name] = ensemble.predict(squares)[:, index].astype(float)
        has[name] = part["label"] == index
    target = params.evaluate.target_sensitivity
    threshold = choose_threshold(has["calibration"], scores["calibration"], target)
    found = bootstrap(has["test"], scores["test"], parts["test"]["patient"], threshold, seed=seed)
    measured = {key: _shown(found[key].to_json()) for key in MEASURED}
    about = {"network": way, "seed": seed, "films": len(parts["test"])}
    return about | measured | {"ECE before, after": "", "s an epoch": ""}


def _shown(found: dict[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
