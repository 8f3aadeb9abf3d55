"""On a CUDA card: repeatable bit for bit, near the CPU's result, and never stuck for memory."""

import numpy as np
import pytest
import torch

from openmed.models.factory import ModelFactory
from openmed.training.learner import Learner
from openmed.training.settings import Augmentation, Phase
from openmed.training.source import FilmSource
from pipeline.tools.device import use_repeatable_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
ALL = (Phase("all", 2, 3e-3, None, average_decay=0.9),)


@pytest.fixture(autouse=True)
def repeatable_kernels():
    use_repeatable_kernels()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_a_training_stopped_on_a_card_ends_bit_for_bit_as_an_undisturbed_one(
    trainer, make_model, weights, assert_same, architecture
):
    whole = trainer(architecture, "whole", model=make_model(architecture).cuda())
    whole.run()
    for steps in (3, 8, 14, 19):
        done = []
        first = trainer(
            architecture,
            f"stopped{steps}",
            model=make_model(architecture).cuda(),
            report=done.append,
            should_stop=lambda done=done, steps=steps: len(done) >= steps,
        )
        with pytest.raises(Exception, match="continues from here"):
            first.run()
        second = trainer(architecture, f"stopped{steps}", model=make_model(architecture).cuda())
        second.run()
        assert_same(weights(second.model), weights(whole.model))


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_an_epoch_on_a_card_is_that_of_the_cpu_within_rounding(trainer, make_model, architecture):
    losses = []
    for device in ("cpu", "cuda"):
        # Without dropout, whose random numbers are the device's own.
        model = make_model(architecture, model_options={}).to(device)
        one = trainer(architecture, device, phases=ALL, mixed_precision=False, model=model)
        losses.append(one.run().history[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_films_read_batch_by_batch_are_those_that_stay_on_the_card(make_model, films, monkeypatch):
    model, some = make_model("vit").cuda(), films()
    parts = np.array_split(np.random.default_rng(0).permutation(40), 6)
    resident = FilmSource(model, some, Augmentation())
    assert resident._resident is not None
    monkeypatch.setattr("openmed.training.source._resident", lambda films, device: None)
    streamed = FilmSource(model, some, Augmentation())
    for one, other in zip(resident.stream(parts), streamed.stream(parts), strict=True):
        assert one.is_cuda and torch.equal(one, other)


def test_a_compiled_step_loses_as_much_as_an_eager_one(trainer, make_model):
    losses = []
    for on in (False, True):
        # Without dropout, whose random numbers a compiled network draws itself.
        model = make_model("vit", model_options={}).cuda()
        one = trainer(folder=f"compile{on}", phases=ALL, compile=on, model=model)
        losses.append(one.run().history[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_a_card_predicts_what_the_cpu_predicts(make_model, films, architecture):
    # TF32, the card's usual way of convolving, is off by a thousandth.
    model = make_model(architecture)
    expected = model.predict(films().pixels)
    assert np.abs(model.cuda().predict(films().pixels) - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["resnet50", "vit", "inceptionv3"])
def test_gradients_of_the_published_networks_are_the_same_bits_each_time(name):
    model = ModelFactory.create(name).cuda().train()
    films = torch.rand(32, model.spec.image_size_px, model.spec.image_size_px, device="cuda")
    found = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cuda", torch.bfloat16):
            model(model.prepare(films)).float().square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_full_card_halves_the_micro_batch_and_the_training_goes_on(trainer, make_model, monkeypatch):
    model, normal = make_model("resnet50").cuda(), Learner.loss
    free, _ = torch.cuda.mem_get_info()

    def loss(learner, forward, batch, labels, smoothing=0.0):
        if len(batch) > 4:
            # A real request for more than the card has.
            torch.empty(2 * free, dtype=torch.uint8, device="cuda")
        return normal(learner, forward, batch, labels, smoothing)

    monkeypatch.setattr(Learner, "loss", loss)
    one = trainer("resnet50", phases=ALL, model=model)
    one.run()
    assert one.position.micro_batch_films == 4
