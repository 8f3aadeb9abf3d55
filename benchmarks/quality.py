"""Quality of the three architectures on real films, by the pipeline's own stages.

Imports the films, splits them by patient, trains every architecture from scratch with every seed, at a small
input size or with `--production` by the production schedule at the published one, and prints a table: AUC,
sensitivity and specificity at the frozen threshold with intervals over patients, calibration before and
after, seconds an epoch; then means over views of a film and over the networks. The test films are those
patients that the split put aside; nothing was chosen on them.
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
from pipeline.device import pick_device
from pipeline.params import Params, load_params
from pipeline.stage import SPLIT

ROOT = Path(__file__).parents[1]
SIZES_PX = {"resnet50": 96, "vit": 96, "inceptionv3": 128}
MEASURED = ("auc", "sensitivity", "specificity", "brier")
COLUMNS = ("network", "seed", "films", *MEASURED, "ECE before, after", "epochs", "s an epoch")


def main() -> int:
    """Runs the stages and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Folder or zip of class folders.")
    parser.add_argument("--seeds", default="0", help="Seeds of the splits and trainings, with commas.")
    parser.add_argument("--epochs", type=int, help="Epochs of all layers; default 4, or production's.")
    parser.add_argument("--production", action="store_true", help="Use params.production.yaml; for a GPU.")
    parser.add_argument("--limit", type=int, help="Use about this many films, whole patients.")
    parser.add_argument("--architectures", default=",".join(SIZES_PX))
    arguments = parser.parse_args()
    films, names = arguments.films.resolve(), arguments.architectures.split(",")
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ["OPENMED_HOME"] = str(Path(scratch) / "home")
        shutil.copy(ROOT / "decisions.csv", ".")
        import_films(films, Path("data"), class_names=("NORMAL", "PNEUMONIA"), limit=arguments.limit)
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for seed in map(int, arguments.seeds.split(",")):
            params = _params(arguments.production, names, arguments.epochs, seed)
            with contextlib.redirect_stdout(sys.stderr):
                for stage in (validate, split, preprocess, resample):
                    stage.run(params)
            for name in names:
                _print(_trained(params, name, seed))
            for row in _means(params, names, seed):
                _print(row)
    return 0


def _print(row: dict[str, object]) -> None:
    print(f"| {' | '.join(str(row.get(column, '')) for column in COLUMNS)} |", flush=True)


def _params(production: bool, names: list[str], epochs: int | None, seed: int) -> Params:
    """Settings of production or of the sample, the latter with more epochs and larger inputs; no weights."""
    content = yaml.safe_load((ROOT / f"params{'.production' if production else ''}.yaml").read_text())
    content["run"]["seed"] = seed
    content["architectures"] = names
    if not production:
        content["preprocess"]["image_size_px"] = SIZES_PX
        epochs = epochs or 4
    for name in names:
        content["train"][name]["weights"] = "none"
        if epochs:
            content["train"][name]["finetune"]["epochs"] = epochs
            content["train"][name]["patience_epochs"] = epochs
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_params()


def _trained(params: Params, name: str, seed: int) -> dict[str, object]:
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        train.run(params, name)
        seconds = time.perf_counter() - started
        evaluate.run(params, name)
    metrics = read_json(Path("artifacts/evaluate", name, "metrics.json"))
    epochs = read_json(Path("artifacts/train", name, "summary.json"))["epochs"]
    steps = metrics["reliability"]
    error = f"{steps['softmax']['ece']:.3f}, {steps['calibrated']['ece']:.3f}"
    size = params.preprocess.image_size_px[name]
    about = {"network": f"{name} {size} px", "seed": seed, "films": metrics["test"]["n"]}
    measured = {key: _shown(metrics["test"][key]) for key in MEASURED}
    took = {"epochs": epochs, "s an epoch": f"{seconds / epochs:.1f}"}
    return about | measured | {"ECE before, after": error} | took


def _means(params: Params, names: list[str], seed: int) -> list[dict[str, object]]:
    """Each network over five views of a film, and all of them together; thresholds from calibration films."""
    device = pick_device(params.run.device)
    alone = [load_predictor(Path("artifacts/evaluate", name, "model"), device) for name in names]
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
    return about | measured


def _shown(found: dict[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
