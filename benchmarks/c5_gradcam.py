"""C5: Grad-CAM of ResNet50 at 224 px against pytorch-grad-cam, and what a map adds to a prediction.

Both take the same normalised films, explain the same layer and class, and give maps enlarged to the films'
size. Theirs are scaled from each film's own minimum to its maximum, ours from 0 to the maximum; for the
comparison ours are brought to their scale, outside the timing. The network is in evaluation mode and
trainable, as it is after loading. Weights are random; norms and head are drawn so that maps are not flat.

Run: python benchmarks/c5_gradcam.py [--films 16] [--pairs 5] [--threads 2]
"""

import argparse
import sys

import numpy as np
import torch
from pairs import ratios, verdict
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from openmed.explain.gradcam import grad_cam, grad_cam_with_logits
from openmed.explain.heatmap import enlarge
from openmed.films.images import resize_film
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory
from openmed.phantoms.phantom import draw

CLASS, SIZE_PX = 1, 224


def lively_model(films: np.ndarray) -> BaseModel:
    """ResNet50 with the norms and the head of a network that tells these films apart."""
    model = ModelFactory.create("resnet50").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.5 + 0.3)
        head = model.classifier()
        # Mostly positive, so that something speaks for the class.
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.05 + 0.02)
        odds = np.diff(model.logits(films), axis=1)
        scale = 2 / odds.std()
        head.weight *= float(scale)
        head.bias[1] -= float(scale * odds.mean())
    return model


def their_maps(cam: GradCAM, x: torch.Tensor) -> np.ndarray:
    """Maps (N, S, S) by pytorch-grad-cam."""
    return cam(input_tensor=x, targets=[ClassifierOutputTarget(CLASS)] * len(x))


def our_maps(model: BaseModel, x: torch.Tensor) -> np.ndarray:
    """Maps (N, S, S) as the product draws them."""
    return enlarge(grad_cam(model, x, CLASS), x.shape[-1])


def compare_with_package(model: BaseModel, x: torch.Tensor, pairs: int) -> list[bool]:
    """Times both ways over one batch, theirs also image by image."""
    layer = model.network.get_submodule(model.spec.explanation_layer)
    with GradCAM(model=model, target_layers=[layer]) as cam:
        theirs, ours = their_maps(cam, x), our_maps(model, x)
        apart = np.abs(scale_cam_image(ours) - theirs).max()
        spread = theirs.std(axis=(1, 2)).min()
        print(f"layer {model.spec.explanation_layer}, maps {theirs.shape}, at most {apart:.1e} apart")
        assert spread > 0.1, "flat maps would agree whatever was computed"
        assert apart < 1e-3, "the two ways draw other maps"
        batched = ratios(lambda: their_maps(cam, x), lambda: our_maps(model, x), pairs)
        single = ratios(
            lambda: [their_maps(cam, x[index : index + 1]) for index in range(len(x))],
            lambda: our_maps(model, x),
            pairs,
        )
    return [verdict("C5-batched", batched, 3.0), verdict("C5-image-by-image", single, 5.0)]


def compare_with_prediction(model: BaseModel, films: np.ndarray, pairs: int) -> bool:
    """Times the probabilities with their maps against the probabilities alone."""

    def explained() -> tuple[np.ndarray, np.ndarray]:
        maps, logits = grad_cam_with_logits(model, model.prepare(films), CLASS)
        return model.spec.probabilities(logits), enlarge(maps, films.shape[-1])

    expected, found = model.predict(films), explained()[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected[:, CLASS]) > 0.3, "equal films would agree whatever was computed"
    # Here theirs / ours is with the map / without it.
    found_ratios = ratios(explained, lambda: model.predict(films), pairs)
    return verdict("C5-predict-and-map", found_ratios, 1.10, at_least=False)


def main() -> int:
    """Measures all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--films", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    drawn = [draw(n, 1, pneumonia=bool(n % 2), size_px=SIZE_PX).film for n in range(arguments.films)]
    films = np.stack([resize_film(film, SIZE_PX) for film in drawn])
    model = lively_model(films)
    passed = compare_with_package(model, model.prepare(films), arguments.pairs)
    passed.append(compare_with_prediction(model, films, arguments.pairs))
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
