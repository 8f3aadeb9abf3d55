"""Quality of the three architectures on real films, by the pipeline's own stages.

Imports the films, splits them by patient, trains every architecture from scratch with every seed at a small
input size, and prints a table: AUC, sensitivity and specificity at the frozen threshold with intervals over
patients, calibration before and after, seconds an epoch. The test films are those patients that the split put
aside; nothing was chosen on them.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import yaml

from openmed.data.importing import import_films
from openmed.files import read_json
from pipeline import evaluate, preprocess, resample, split, train, validate
from pipeline.params import Params, load_params

ROOT = Path(__file__).parents[1]
SIZES_PX = {"resnet50": 96, "vit": 96, "inceptionv3": 128}


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
    test = metrics["test"]
    measured = {
        key: f"{test[key]['value']:.3f} [{test[key]['low']:.3f}, {test[key]['high']:.3f}]"
        for key in ("auc", "sensitivity", "specificity", "brier")
    }
    size = params.preprocess.image_size_px[name]
    about = {"network": f"{name} {size} px", "seed": seed, "test films": test["n"]}
    return about | measured | {"s an epoch": f"{seconds / epochs:.0f}"}


if __name__ == "__main__":
    sys.exit(main())
