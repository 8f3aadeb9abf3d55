"""C18: prediction of one film on a CPU with the check for films unlike those learnt from, against without.

Full-size networks at their published input sizes with random weights; statistics and limit are fitted on
phantoms. Both sides are exported graphs of the same weights; that with the check has one more output, and
compares it with the statistics. No film is unlike, as hardly any is where a model is at home: only one that
is unlike is looked at again for the reason.

Run: python benchmarks/c18_unlike_films.py [--films 12] [--pairs 11] [--threads 2]
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pairs import ratios, verdict

from openmed.films.images import resize_film
from openmed.fitted.feature_statistics import fit_statistics
from openmed.fitted.novelty import Novelty
from openmed.inference.checkpoint import save_model, write_statistics
from openmed.inference.export import export_onnx
from openmed.inference.referral import unlike_reasons
from openmed.inference.session import ExportedModel, load_exported
from openmed.models.factory import ModelFactory
from openmed.phantoms.phantom import draw

TARGET = 1 / 1.10
"""The check may make a prediction take 1.10 times as long."""


def plain(model: ExportedModel, films: np.ndarray) -> list[float]:
    """Predicts each film alone."""
    return [float(model.predict(film[None])[0, 1]) for film in films]


def checked(model: ExportedModel, films: np.ndarray) -> list[float]:
    """The same, and says of each film whether it is unlike."""
    answers = []
    for film in films:
        probabilities, distances = model.assess(film[None])
        assert unlike_reasons(model, film[None], distances) == [None]
        answers.append(float(probabilities[0, 1]))
    return answers


def compare(architecture: str, count: int, pairs: int) -> bool:
    """Times both sides of one architecture in turn and prints the verdict."""
    model = ModelFactory.create(architecture).eval()
    size = model.spec.image_size_px
    drawn = [draw(n, 1, pneumonia=bool(n % 2), size_px=size).film for n in range(count)]
    films = np.stack([resize_film(film, size) for film in drawn])
    with tempfile.TemporaryDirectory() as temporary:
        without, with_check = Path(temporary, "without"), Path(temporary, "with")
        save_model(without, model)
        export_onnx(model, without, films)
        model.statistics = fit_statistics(model.examine(films)[1], np.arange(count) % 2)
        limit = float(model.assess(films)[1].max()) + 0.1
        digest = write_statistics(with_check, model.statistics)
        model.spec = replace(model.spec, novelty=Novelty(0.02, limit, count, digest))
        save_model(with_check, model)
        export_onnx(model, with_check, films)
        bare, full = load_exported(without), load_exported(with_check)
    np.testing.assert_allclose(plain(bare, films), checked(full, films), atol=1e-6)
    measured = ratios(lambda: plain(bare, films), lambda: checked(full, films), pairs)
    return verdict(f"C18-{architecture}", measured, TARGET)


def main() -> int:
    """Measures the three architectures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)  # the session takes its number from here
    passed = [compare(name, arguments.films, arguments.pairs) for name in ModelFactory.names()]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
