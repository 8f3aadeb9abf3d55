"""Limited memory: smaller micro-batches, accumulated gradients, activations computed again."""

import pytest
import torch

from openmed.errors import BadInput, ResourceError
from openmed.training.learner import Learner
from openmed.training.settings import Phase

ALL = (Phase("all", 2, 3e-3, None),)
# What CUDA raises, what the CPU's allocator says, and Python's own.
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
)


@pytest.fixture
def limit(monkeypatch):
    """Lets the memory hold that many films; the batch norms have seen the batch when it is full."""
    normal = Learner.loss

    def set_limit(most, error):
        def loss(learner, forward, films, labels, smoothing=0.0):
            result = normal(learner, forward, films, labels, smoothing)
            if len(films) > most:
                raise error
            return result

        monkeypatch.setattr(Learner, "loss", loss)

    return set_limit


@pytest.mark.parametrize(
    ("architecture", "error"),
    zip(("resnet50", "vit", "vit"), ERRORS, strict=True),
    ids=["cuda", "cpu", "python"],
)
def test_a_full_memory_halves_the_micro_batch_and_changes_nothing_else(
    trainer, weights, assert_same, limit, architecture, error
):
    small = trainer(architecture, "small", phases=ALL, micro_batch_films=2)
    small.run()
    limit(2, error)
    one = trainer(architecture, "full", phases=ALL, micro_batch_films=8)
    one.run()
    assert one.position.micro_batch_films == 2
    assert_same(weights(one.model), weights(small.model))


def test_the_found_size_is_part_of_the_state(trainer, limit):
    stop = []
    one = trainer(phases=ALL, report=lambda progress: stop.append(1), should_stop=lambda: bool(stop))
    limit(4, ERRORS[0])
    with pytest.raises(Exception, match="continues from here"):
        one.run()
    limit(99, ERRORS[0])
    second = trainer(phases=ALL)
    assert second.run() and second.position.micro_batch_films == 4


def test_a_memory_too_small_for_two_films_is_one_sentence(trainer, limit):
    limit(1, ERRORS[0])
    with pytest.raises(ResourceError, match="not enough for 2 films at once: lower micro_batch_films"):
        trainer(phases=ALL).run()


def test_another_error_is_not_taken_for_a_full_memory(trainer, limit):
    limit(1, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        trainer(phases=ALL).run()


def test_activations_computed_again_give_the_same_training(trainer, weights, assert_same):
    results = []
    for again in (False, True):
        one = trainer(folder=f"again{again}", phases=ALL, activation_checkpointing=again)
        one.run()
        results.append(weights(one.model))
    assert_same(*results)


def test_a_network_with_batch_norms_refuses_to_compute_activations_again(trainer):
    with pytest.raises(BadInput, match="resnet50 has batch norms and cannot checkpoint activations"):
        trainer("resnet50", activation_checkpointing=True)
