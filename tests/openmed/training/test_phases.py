import pytest
import torch
from torch import nn

from openmed.models.factory import ModelFactory
from openmed.training.phases import frozen, learning_rate_share, parameter_groups, unfreeze


@pytest.fixture(params=["resnet50", "vit", "inceptionv3"])
def model(request, make_model):
    if request.param == "inceptionv3":
        return ModelFactory.create("inceptionv3", image_size_px=75)
    return make_model(request.param)


def test_the_head_phase_trains_the_classifier_and_freezes_every_norm(model):
    learning = unfreeze(model, 0)
    assert {id(p) for p in learning} == {id(p) for p in model.classifier().parameters()}
    still = {id(module) for block in frozen(model, 0) for module in block.modules()}
    norms = [m for m in model.network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    assert norms and all(id(norm) in still for norm in norms)


def test_what_is_frozen_and_what_learns_never_overlap(model):
    everything = len(model.blocks())
    for blocks in range(everything + 2):
        learning = {id(p) for p in unfreeze(model, blocks)}
        still = {id(p) for block in frozen(model, blocks) for p in block.parameters()}
        assert not learning & still
        assert len(frozen(model, blocks)) == max(everything - blocks, 0)


def test_all_learns_when_no_number_of_blocks_is_given_even_after_a_frozen_phase(model):
    unfreeze(model, 0)
    assert len(unfreeze(model, None)) == len(list(model.network.parameters()))
    assert frozen(model, None) == []


def groups_of(model, weight_decay=0.3, layer_decay=1.0):
    return parameter_groups(model, weight_decay, layer_decay)


def test_norms_and_biases_are_not_decayed_and_all_else_is(model):
    unfreeze(model, None)
    decayed, kept = sorted(groups_of(model), key=lambda group: -group["weight_decay"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim > 1 for p in decayed["params"]} == {True} and {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.network.parameters()))


def test_only_what_learns_is_in_a_group(model):
    learning = {id(p) for p in unfreeze(model, 1)}
    assert {id(p) for group in groups_of(model) for p in group["params"]} == learning


def test_each_block_learns_slower_than_the_next_and_the_head_at_the_whole_rate(model):
    unfreeze(model, None)
    share = {id(p): group["lr_share"] for group in groups_of(model, layer_decay=0.5) for p in group["params"]}
    blocks = model.blocks()
    assert {share[id(p)] for p in model.classifier().parameters()} == {1.0}
    for above, block in enumerate(reversed(blocks), 1):
        assert {share[id(p)] for p in block.parameters()} <= {0.5**above}
    # What lies before the blocks, such as a position embedding, learns with the first.
    assert min(share.values()) == 0.5 ** len(blocks) and len(share) == len(list(model.network.parameters()))


@pytest.mark.parametrize(("total", "share"), [(40, 0.1), (40, 0.0), (7, 0.5), (1, 0.1)])
def test_the_learning_rate_rises_linearly_and_falls_as_torchs_cosine_schedule(total, share):
    warmup = max(1, round(total * share))
    shares = [learning_rate_share(step, total, share) for step in range(total)]
    assert shares[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - warmup), eta_min=0.01)
    for step in range(warmup, total):
        assert shares[step] == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert max(shares) == pytest.approx(1) and min(shares) > 0


def test_a_warmup_over_the_whole_phase_never_divides_by_zero():
    assert [learning_rate_share(step, 4, 1.0) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
