"""A shortcut is planted: a bright letter in the corner of every film with the finding."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from openmed.metrics.classification import auc
from openmed.models.factory import ModelFactory
from openmed.perturbations.hidden_parts import without_border, without_lungs
from openmed.phantoms.phantom import draw
from openmed.training.loop import Trainer
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films

SIZE, N = 64, 160
STRESS = yaml.safe_load((Path(__file__).parents[3] / "change_plan.yaml").read_text())["protocol"][
    "evaluation"
]["stress"]


@pytest.fixture(scope="module")
def films():
    labels = np.arange(N) % 2
    pixels = [draw(k, k, pneumonia=bool(label), size_px=SIZE).film for k, label in enumerate(labels)]
    for film, label in zip(pixels, labels, strict=True):
        if label:
            cv2.putText(film, "L", (2, 12), cv2.FONT_HERSHEY_PLAIN, 0.8, 255, 1)
    return Films(np.stack(pixels), np.arange(N), labels.astype(np.int64))


def judged(films, context, folder):
    """AUC on films as they are, with the lungs hidden, and with the border hidden."""
    torch.manual_seed(0)
    half = [Films(films.pixels, films.rows[part], films.labels[part]) for part in (slice(96), slice(96, N))]
    model = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=SIZE, seed=0)
    phase = Phase("finetune", epochs=12, learning_rate=3e-3, blocks=None)
    augmentation = Augmentation(context=context, gamma=0.2)
    settings = TrainSettings(
        (phase,), batch_films=16, micro_batch_films=16, patience_epochs=12, augmentation=augmentation
    )
    Trainer(model, *half, settings, folder).run()
    pixels, labels = films.pixels[96:], films.labels[96:]
    seen = (pixels, without_lungs(pixels), without_border(pixels))
    return [auc(labels, model.predict(each)[:, 1].astype(float)) for each in seen]


def test_a_letter_in_the_corner_is_learnt_and_the_limits_of_the_plan_refuse_it(films, tmp_path):
    plain, without_the_lungs, without_the_border = judged(films, 0.0, tmp_path)
    assert plain > 0.95
    assert (
        without_the_lungs > STRESS["max_auc_without_lungs"]
        or plain - without_the_border > STRESS["max_border_loss"]
    )


def test_with_context_exchange_the_letter_is_not_learnt_and_the_finding_is(films, tmp_path):
    plain, without_the_lungs, without_the_border = judged(films, 1.0, tmp_path)
    assert without_the_lungs < 0.65
    assert plain > 0.95 and without_the_border > 0.95
