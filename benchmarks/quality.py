"""Quality of the three architectures on real films, at home and elsewhere, by the pipeline's own stages.

Imports the films, splits them by patient, trains every architecture from scratch with every seed, at a small
input size or with `--production` by the production schedule at the published one, once with each augmentation
of `--settings`, on the same splits. Prints a table of the test films, patients that the split put aside and
on whom nothing was chosen: AUC, sensitivity and specificity at the frozen threshold, the worst of both over
the simulated sites, AUC with hidden lungs, the share referred as unlike, calibration. With `--external` a
second table has the same frozen model on films of other hospitals: by set and view, against the labels of
radiologists apart from mined ones.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from openmed.files import read_json
from openmed.films.images import decode_squares
from openmed.inference.predictor import Predictor
from openmed.inference.session import load_predictor
from openmed.intake.importing import import_films
from openmed.metrics.intervals import judged_intervals
from openmed.training.settings import Augmentation
from pipeline.settings.params import Params, load_params
from pipeline.stages import evaluate, preprocess, resample, split, train, validate
from pipeline.tools.device import pick_device

ROOT = Path(__file__).parents[1]
SIZES_PX = {"resnet50": 96, "vit": 96, "inceptionv3": 128}
MEASURED = ("auc", "sensitivity", "specificity")
COLUMNS = (
    *("network", "settings", "seed", "films", *MEASURED, "worst site sensitivity", "worst site specificity"),
    *("AUC, lungs hidden", "unlike", "ECE before, after", "epochs", "s an epoch"),
)
ELSEWHERE = ("network", "settings", "seed", "set", "labels", "films", "unlike", *MEASURED)


def main() -> int:
    """Runs the stages and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("films", type=Path, help="Folder or zip of class folders.")
    parser.add_argument("--external", type=Path, help="Zip of films from elsewhere with a films.csv.")
    parser.add_argument("--settings", default="new", help="Of old, new and context, with commas.")
    parser.add_argument("--seeds", default="0", help="Seeds of the splits and trainings, with commas.")
    parser.add_argument("--epochs", type=int, help="Epochs of all layers; default 4, or production's.")
    parser.add_argument("--production", action="store_true", help="Use params.production.yaml; for a GPU.")
    parser.add_argument("--limit", type=int, help="Use about this many films, whole patients.")
    parser.add_argument("--architectures", default=",".join(SIZES_PX))
    arguments = parser.parse_args()
    films, names = arguments.films.resolve(), arguments.architectures.split(",")
    elsewhere = External(arguments.external.resolve()) if arguments.external else None
    home, away = [], []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ["OPENMED_HOME"] = str(Path(scratch) / "home")
        shutil.copy(ROOT / "decisions.csv", ".")
        import_films(films, Path("data"), class_names=("NORMAL", "PNEUMONIA"), limit=arguments.limit)
        for seed in map(int, arguments.seeds.split(",")):
            for settings in arguments.settings.split(","):
                params = _params(arguments, names, seed, settings)
                with contextlib.redirect_stdout(sys.stderr):
                    for stage in (validate, split, preprocess, resample):
                        stage.run(params)
                for name in names:
                    about = {"network": f"{name} {params.preprocess.image_size_px[name]} px"}
                    about |= {"settings": settings, "seed": seed}
                    home.append(about | _trained(params, name))
                    print(_row(home[-1], COLUMNS), file=sys.stderr, flush=True)
                    away += [about | row for row in (elsewhere.judged(name) if elsewhere else ())]
    _print_table(COLUMNS, home)
    if away:
        _print_table(ELSEWHERE, away)
    return 0


def _print_table(columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(_row(row, columns))


def _row(row: dict[str, object], columns: tuple[str, ...]) -> str:
    return f"| {' | '.join(str(row[column]) for column in columns)} |"


def augmentations() -> dict[str, Augmentation]:
    """What `--settings` chooses from: the mild one of before, that of production, the same with context."""
    production = train.train_settings(load_params(ROOT / "params.production.yaml"), "resnet50").augmentation
    changed = {**asdict(production), "context": 1.0}
    return {"old": Augmentation(), "new": production, "context": Augmentation(**changed)}


def _params(arguments: argparse.Namespace, names: list[str], seed: int, settings: str) -> Params:
    """Settings of production or of the sample, the latter with more epochs and larger inputs; no weights."""
    kind = ".production" if arguments.production else ""
    content = yaml.safe_load((ROOT / f"params{kind}.yaml").read_text())
    content["run"]["seed"] = seed
    content["architectures"] = names
    epochs = arguments.epochs
    if not arguments.production:
        content["preprocess"]["image_size_px"] = SIZES_PX
        epochs = epochs or 4
    for name in names:
        section = content["train"][name]
        section |= {"weights": "none", "augment": asdict(augmentations()[settings])}
        if epochs:
            section["finetune"]["epochs"] = section["patience_epochs"] = epochs
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_params()


def _trained(params: Params, name: str) -> dict[str, object]:
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        train.run(params, name)
        seconds = time.perf_counter() - started
        evaluate.run(params, name)
    metrics = read_json(Path("artifacts/evaluate", name, "metrics.json"))
    epochs = read_json(Path("artifacts/train", name, "summary.json"))["epochs"]
    steps, worst = metrics["reliability"], metrics["sites"]["test"]["worst"]
    at_worst = {f"worst site {key}": f"{_shown(found)} {found['site']}" for key, found in worst.items()}
    return {
        "films": metrics["test"]["n"],
        **{key: _shown(metrics["test"][key]) for key in MEASURED},
        **at_worst,
        "AUC, lungs hidden": f"{metrics['stress']['lungs hidden']['auc']:.3f}",
        "unlike": _shown(metrics["novelty"]["referred"]),
        "ECE before, after": f"{steps['softmax']['ece']:.3f}, {steps['calibrated']['ece']:.3f}",
        "epochs": epochs,
        "s an epoch": f"{seconds / epochs:.1f}",
    }


class External:
    """Films of other hospitals in a zip with a films.csv: path, source, view, label and radiologist_label."""

    def __init__(self, source: Path) -> None:
        self._archive = zipfile.ZipFile(source)
        (table,) = (name for name in self._archive.namelist() if name.endswith("films.csv"))
        self._folder = table.removesuffix("films.csv")
        self._films = pd.read_csv(self._archive.open(table), dtype=str, keep_default_na=False)
        self._squares: dict[int, np.ndarray] = {}

    def judged(self, name: str) -> Iterator[dict[str, object]]:
        """Judges a finished model at its frozen threshold on each set, each view and each kind of label."""
        predictor = load_predictor(Path("artifacts/evaluate", name, "model"), pick_device("auto"))
        scores, unlike = self._assessed(predictor)
        for title, labels, where, has in self._sets():
            films = self._films[where]
            found = judged_intervals(
                has[where].to_numpy(int),
                scores[where],
                films["source"].str.cat(films["patient"]).to_numpy(),
                predictor.spec.threshold,
            )
            shown = {key: _shown(found[key].to_json()) for key in MEASURED}
            about = {
                "set": title,
                "labels": labels,
                "films": len(films),
                "unlike": f"{unlike[where].mean():.2f}",
            }
            yield about | shown

    def _sets(self) -> Iterator[tuple[str, str, pd.Series, pd.Series]]:
        films = self._films
        kinds = {
            "mined": (films["label"] != "", films["label"] == "PNEUMONIA"),
            "radiologist": (
                films["radiologist_label"].isin(("Lung Opacity", "Normal")),
                films["radiologist_label"] == "Lung Opacity",
            ),
        }
        for source, view in sorted(set(zip(films["source"], films["view"], strict=True))):
            here = (films["source"] == source) & (films["view"] == view)
            for labels, (known, has) in kinds.items():
                if (here & known).any():
                    yield f"{source} {view or 'no view'}", labels, here & known, has

    def _assessed(self, predictor: Predictor) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all films, and which of them are unlike those that the model learnt from."""
        size = predictor.spec.image_size_px
        if size not in self._squares:
            contents = (self._archive.read(self._folder + path) for path in self._films["path"])
            self._squares[size] = np.stack([decode_squares(data, [size], "a film")[0] for data in contents])
        squares = self._squares[size]
        probabilities, distances = predictor.assess(squares)
        scores = probabilities[:, predictor.spec.positive_index].astype(float)
        return scores, predictor.spec.novelty.unlike(distances)


def _shown(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
