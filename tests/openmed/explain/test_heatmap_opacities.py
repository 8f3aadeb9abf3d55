"""Maps of trained models against the known masks of the phantoms."""

import numpy as np
import pytest
from scipy.stats import binomtest

from openmed.explain.heatmap import explain, methods
from openmed.films.images import resize_film
from openmed.models.factory import ModelFactory
from openmed.phantoms.phantom import draw
from openmed.training.loop import Trainer
from openmed.training.settings import Phase, TrainSettings
from openmed.training.source import Films

pytestmark = pytest.mark.slow

VIT = {"patch_size": 8, "depth": 4, "global_pool": "avg", "class_token": False}
RESNET = {"image_size_px": 64, "model_options": {"output_stride": 16}}
# The architecture, its network, films and epochs; a smaller network of the first stands in for the long ones.
# A ViT learns from few films what is no opacity: it tells them apart and looks elsewhere.
NETWORKS = {
    "resnet10": ("resnet50", {"timm_name": "resnet10t", **RESNET}, 280, 3),
    "resnet50": ("resnet50", {"timm_name": "resnet50", **RESNET}, 420, 3),
    "vit": (
        "vit",
        {"timm_name": "vit_tiny_patch16_224", "image_size_px": 64, "model_options": VIT},
        1200,
        20,
    ),
    "inceptionv3": ("inceptionv3", {"image_size_px": 128}, 420, 3),
}


def cohort(first_patient: int, films: int, size_px: int):
    drawn = [draw(first_patient + i, i, pneumonia=i % 2 == 1, size_px=128) for i in range(films)]
    pixels = np.stack([resize_film(one.film, size_px) for one in drawn])
    labels = np.array([one.label for one in drawn], np.int64)
    return Films(pixels, np.arange(films), labels), np.stack([one.mask for one in drawn])


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=() if name == "resnet10" else pytest.mark.long) for name in NETWORKS],
)
def test_maps_of_a_trained_model_point_at_the_opacities_more_often_than_chance(network, tmp_path):
    """Chance: heat that knows nothing lies inside the mask in proportion to the mask's area."""
    architecture, options, films, epochs = NETWORKS[network]
    size = options["image_size_px"]
    train, _ = cohort(0, films, size)
    validation, _ = cohort(10_000, 60, size)
    test, masks = cohort(20_000, 120, size)
    model = ModelFactory.create(architecture, seed=1, **options)
    settings = TrainSettings(
        phases=(Phase("finetune", epochs, 1e-3, None),),
        batch_films=16,
        label_smoothing=0.05,
        warmup_share=0.15,
        seed=1,
    )
    Trainer(model, train, validation, settings, tmp_path).run()
    scores = model.predict(test.pixels)[:, 1]
    found = (test.labels == 1) & (scores > 0.5)
    assert found.sum() >= 30
    method = methods(model)[0]
    heat = explain(model, test.pixels[found], class_index=1, method=method)[method]
    inside = np.stack([resize_film(mask.astype(np.uint8) * 255, size) for mask in masks[found]]) / 255
    share = (heat * inside).sum((1, 2)) / np.maximum(heat.sum((1, 2)), 1e-9)
    area = inside.mean((1, 2))
    print(network, f"films {found.sum()}, heat inside {share.mean():.3f}, area {area.mean():.3f}")
    # Half of the films would beat their mask's area by chance.
    assert binomtest(int((share > area).sum()), int(found.sum()), alternative="greater").pvalue < 1e-3
    assert share.mean() > 1.5 * area.mean()
