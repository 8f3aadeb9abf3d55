"""Seeded fuzz of model folders: one damage, and what is loaded answers as before or is refused once.

Operating points that a damaged description gives within their ranges count, for the registry alone can know
them; probabilities and names must be those of the intact folder. Two of three mutants of the other files are
sealed: the description names the hash of what is damaged, so that parsers and control films meet it.
"""

import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from openmed.errors import OpenMedError
from openmed.films.images import resize_film
from openmed.fitted.abstention import Abstention
from openmed.fitted.calibration import Calibration
from openmed.inference.answers import answer, film_answers
from openmed.inference.checkpoint import SPEC_FILE, load_model, read_spec, save_model
from openmed.inference.ensemble import Ensemble
from openmed.inference.export import export_onnx
from openmed.inference.predictor import Predictor
from openmed.inference.session import load_predictor
from openmed.phantoms.phantom import draw as draw_phantom
from tests.openmed.conftest import small, with_statistics
from tests.openmed.inference.folder_damage import FILES, damage, linked, seal
from tests.openmed.mutant_process import Judge, Outcome, judge_all, report

ARCHITECTURES = ("vit", "resnet50")
_CLASSES = ("NORMAL", "BACTERIA", "VIRUS")
_LOAD = {"onnx": load_predictor, "pytorch": load_model}
_OPERATING_POINTS = ("threshold", "further_thresholds", "abstention", "novelty")
_SEALED_TOLERANCE, _TOLERANCE = 1e-2, 1e-4
"""Most that a probability may differ. Control films allow 5e-3 of a logit to a file that hashes vouch for."""


def write_folder(folder: Path, architecture: str, seed: int) -> None:
    """Writes a small model folder as the evaluate stage leaves it, of a network that is sure of itself."""
    noise = np.random.default_rng(seed).integers(0, 256, (20, 32, 32), dtype=np.uint8)
    model = small(architecture, class_names=_CLASSES, positive="BACTERIA", seed=seed).eval()
    with torch.no_grad():
        model.classifier().weight.mul_(20)
    model.spec = model.spec.with_calibration(Calibration("platt", (0.1, -0.1, 0.0), (0.5, -0.5, 0.0), 1.7))
    model.spec = model.spec.with_threshold(0.4, {"VIRUS": 0.3})
    model.spec = replace(model.spec, abstention=Abstention(0.9, (0.35, 0.05, 0.6), (20, 30, 40)))
    with_statistics(model, noise)
    save_model(folder, model)
    export_onnx(model, folder, noise)


def fuzz(mutants: int, *, seed: int = 0, only: str = "") -> Outcome:
    """Loads and asks damaged model folders, as many of each architecture, file and runtime.

    Args:
        mutants: How many in all.
        seed: Another one gives other mutants.
        only: Kind to take alone, as "vit model.json onnx", empty for all.
    """
    kinds = [f"{family} {file} {way}" for file in FILES for family in ARCHITECTURES for way in _LOAD]
    kinds = [kind for kind in kinds if only in kind]
    tasks = [(kinds[index % len(kinds)], f"{seed}-{index}") for index in range(mutants)]
    with tempfile.TemporaryDirectory() as root:
        for name in ARCHITECTURES:
            for number in range(2):
                write_folder(Path(root) / f"{name}-{number}", name, number)
        return judge_all(tasks, partial(_judge, Path(root)), Outcome("model folders", "answer"))


def _judge(root: Path) -> Judge:
    torch.set_num_threads(1)
    warnings.simplefilter("always")
    printed = (root / "printed").open("w+b", buffering=0)
    for stream in (1, 2):
        os.dup2(printed.fileno(), stream)
    intact = {(name, way): load(root / f"{name}-0") for name in ARCHITECTURES for way, load in _LOAD.items()}

    def judge(kind: str, number: str) -> str:
        family, file, way = kind.split()
        draw, folder = random.Random(f"{kind}-{number}"), linked(root / f"{family}-0", root / "mutant")
        try:
            damage(folder, file, root / draw.choice([f"{name}-1" for name in ARCHITECTURES]), draw)
            if sealed := file != SPEC_FILE and draw.random() < 0.67:
                seal(folder, file)
            tolerance = _SEALED_TOLERANCE if sealed else _TOLERANCE
            result = judged(folder, way, intact[family, way], tolerance)
            return f"prints {noise[-500:].decode()!r}" if (noise := _drained(printed)) else result
        finally:
            shutil.rmtree(folder)

    return judge


def _drained(stream: BinaryIO) -> bytes:
    """Gives what was written to a file since, and empties it."""
    sys.stdout.flush()
    stream.seek(0)
    content = stream.read()
    stream.seek(0)
    stream.truncate()
    return content


def judged(folder: Path, way: str, intact: Predictor, tolerance: float) -> str:
    """Says what becomes of a folder.

    Args:
        folder: A damaged model folder.
        way: What it is loaded for: onnx or pytorch.
        intact: What was loaded from it before.
        tolerance: Most that a probability may differ.

    Returns:
        "answer", "refused" or what is wrong.
    """
    try:
        found = _rows(_LOAD[way](folder))
    except OpenMedError as error:
        clean = str(error).isprintable() and 0 < len(str(error)) < 500
        return "refused" if clean else f"says {str(error)[:500]!r}"
    except BaseException:
        return traceback.format_exc(limit=-3).replace("\n", " | ")
    before = intact.spec
    try:
        told = read_spec(folder)[0]
        intact.spec = replace(before, **{name: getattr(told, name) for name in _OPERATING_POINTS})
        return _compared(found, _rows(intact), tolerance)
    finally:
        intact.spec = before


def _rows(predictor: Predictor) -> list[dict[str, Any]]:
    ensemble = Ensemble([predictor])
    drawn = [draw_phantom(each, each, pneumonia=bool(each % 2)).film for each in range(10, 14)]
    drawn.append(np.random.default_rng(9).integers(0, 256, (40, 40), dtype=np.uint8))
    sizes = {size: np.stack([resize_film(film, size) for film in drawn]) for size in ensemble.sizes_px}
    return [dict(vars(each)) for each in film_answers(ensemble, answer(ensemble, sizes))]


def _compared(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> str:
    """Holds what is said of films against those of the intact model, which are of the same films."""
    for row, intact in zip(found, expected, strict=True):
        numbers, wanted = (np.array(list(each.pop("probabilities").values())) for each in (row, intact))
        usable = np.isfinite(numbers).all() and numbers.min() >= 0 and numbers.max() <= 1
        if not usable or abs(numbers.sum() - 1) > 1e-5:
            return f"answers {numbers.tolist()}"
        apart = max(np.abs(numbers - wanted).max(), abs(row.pop("probability") - intact.pop("probability")))
        if not apart <= tolerance:
            return f"answers {apart:.1e} off"
        if row != intact:
            return f"answers {row} instead of {intact}"
    return "answer"


if __name__ == "__main__":
    sys.exit(report(fuzz, __doc__, 2000))
