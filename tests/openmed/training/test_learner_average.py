"""Weights averaged over the steps."""

import numpy as np
import torch

from openmed.training.learner import Learner
from openmed.training.settings import Phase


def averaged(decay, epochs=2):
    return (Phase("all", epochs, 3e-3, None, average_decay=decay),)


def test_the_average_is_that_of_the_weights_after_each_step(trainer, weights, monkeypatch):
    """By timm's rule the decay rises as 1 - (1 + step)^(-2/3) up to the setting."""
    one = trainer("resnet50", phases=averaged(0.5, epochs=1))
    steps, normal = [], Learner._accumulate

    def watched(*arguments):
        steps.append(weights(one.model))
        return normal(*arguments)

    monkeypatch.setattr(Learner, "_accumulate", watched)
    after_each = run_watched(one, weights)
    last = one.learner.average.module.network.state_dict()
    # The weights after a step are those before the next.
    after = [*steps[1:], after_each[-1]]
    expected = after[0]
    for number, now in enumerate(after[1:], 1):
        decay = min(0.5, 1 - (1 + number) ** (-2 / 3))
        expected = {
            k: (decay * v + (1 - decay) * now[k]) if v.is_floating_point() else now[k]
            for k, v in expected.items()
        }
    for name, value in last.items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], atol=1e-5), name


def run_watched(trainer, weights):
    """Runs to the end; the learning weights at every report."""
    seen = []
    trainer.report = lambda progress: seen.append(weights(trainer.model))
    trainer.run()
    return seen


def test_what_is_judged_and_returned_is_the_average(trainer, weights, assert_same):
    one = trainer(phases=averaged(0.8, epochs=1))
    learning = run_watched(one, weights)[-1]
    position = one.position
    assert_same(weights(one.model), one.learner.average.module.network.state_dict())
    probabilities = one.model.predict(one.validation.pixels)
    losses = -np.log(probabilities[np.arange(24), one.validation.labels])
    assert np.isclose(position.best["validation_loss"], losses.mean(), rtol=1e-4)
    assert not torch.equal(learning["head.weight"], weights(one.model)["head.weight"])


def test_a_head_alone_is_never_averaged(trainer):
    one = trainer(phases=(Phase("head", 1, 3e-3, 0, average_decay=0.9),))
    one.run()
    assert one.learner.average is None
