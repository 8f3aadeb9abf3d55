"""C9: prediction of one film on a CPU, through the exported model against the same model in PyTorch.

Full-size networks at 224 px with random weights; the head is scaled so that the probabilities of the films
spread over 0 to 1, for two models that both say 0.5 would agree whatever they compute. Both sides load the
same model folder, take the same phantoms as uint8 and use the same number of threads.

Run: python benchmarks/c9_exported_prediction.py [--films 20] [--pairs 11] [--threads 2]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from pairs import ratios, verdict

from openmed.films.images import resize_film
from openmed.inference.checkpoint import load_model, save_model
from openmed.inference.export import export_onnx
from openmed.inference.predictor import Predictor
from openmed.inference.session import load_exported
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory
from openmed.phantoms.phantom import draw

TARGETS = {"resnet50": 1.8, "vit": 1.5}
SIZE_PX = 224


def spread_head(model: BaseModel, films: np.ndarray) -> None:
    """Scales and centres the head so that the log-odds of these films have a spread of 2."""
    head = model.classifier()
    with torch.no_grad():
        probabilities = torch.from_numpy(model.predict(films)).double()
        odds = probabilities.log().diff(dim=1)
        scale = 2 / odds.std()
        head.weight *= scale
        head.bias[1] -= float(scale * odds.mean())


def one_by_one(model: Predictor, films: np.ndarray) -> np.ndarray:
    """Predicts each film alone, as a service does that is asked one film at a time."""
    return np.concatenate([model.predict(film[None]) for film in films])


def compare(architecture: str, films: np.ndarray, pairs: int) -> bool:
    """Times both sides of one architecture in turn and prints the verdict."""
    model = ModelFactory.create(architecture)
    assert model.spec.image_size_px == SIZE_PX
    spread_head(model.eval(), films)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder, model)
        export_onnx(model, folder, films)
        eager, exported = load_model(folder), load_exported(folder)
    expected, found = one_by_one(eager, films), one_by_one(exported, films)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected[:, 1]) > 0.3, "the films must be told apart, or agreement shows nothing"
    print(f"{architecture}: largest difference of a probability {np.abs(found - expected).max():.1e}")
    measured = ratios(lambda: one_by_one(eager, films), lambda: one_by_one(exported, films), pairs)
    return verdict(f"C9-{architecture}", measured, TARGETS[architecture])


def main() -> int:
    """Measures both architectures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)  # the session takes its number from here
    drawn = [draw(n, 1, pneumonia=bool(n % 2), size_px=SIZE_PX).film for n in range(arguments.films)]
    films = np.stack([resize_film(film, SIZE_PX) for film in drawn])
    passed = [compare(name, films, arguments.pairs) for name in TARGETS]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
