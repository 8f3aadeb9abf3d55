"""The training loop: it learns, repeats itself, and a kill at any moment changes nothing."""

import json
import math
import pickle
import random
import time
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn.functional import cross_entropy

from openmed.training import loop
from openmed.training.learner import Learner, amp_type
from openmed.training.loop import TrainingDiverged, TrainingStopped
from openmed.training.phases import learning_rate_share
from openmed.training.position import STATE_FILE, read_position
from openmed.training.settings import Augmentation, Phase
from openmed.training.source import Films

STILL = Augmentation(rotate_degrees=0, shift=0, scale=0, brightness=0, contrast=0)
# SHORT of conftest.py reports 5 batches and an epoch, four times.
REPORTS, HEAD_REPORTS = 24, 12


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


class Reports:
    """Counts reports and kills at one of them."""

    def __init__(self, kill_at=None):
        self.seen, self.kill_at = [], kill_at

    def __call__(self, progress):
        self.seen.append(progress)
        if len(self.seen) == self.kill_at:
            raise Killed


def history_of(position):
    """Everything but the seconds, which differ."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in position.history]


@pytest.fixture(scope="module")
def whole_runs():
    return {}


@pytest.fixture
def uninterrupted(whole_runs, trainer, weights):
    """Weights, history and best epoch of a training that nothing disturbed."""

    def result(architecture):
        if architecture not in whole_runs:
            reports = Reports()
            one = trainer(architecture, "uninterrupted", report=reports)
            position = one.run()
            assert len(reports.seen) == REPORTS
            whole_runs[architecture] = weights(one.model), history_of(position), position.best
        return whole_runs[architecture]

    return result


@pytest.fixture
def assert_as_uninterrupted(uninterrupted, weights, assert_same):
    def check(architecture, model, position):
        expected, history, best = uninterrupted(architecture)
        assert_same(weights(model), expected)
        assert history_of(position) == history and position.best == best

    return check


# Kills


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
@pytest.mark.parametrize("kill_at", [2, HEAD_REPORTS, HEAD_REPORTS + 1, REPORTS])
def test_a_killed_training_resumes_bit_for_bit(trainer, assert_as_uninterrupted, architecture, kill_at):
    with pytest.raises(Killed):
        trainer(architecture, checkpoint_every_s=0, report=Reports(kill_at)).run()
    rest = Reports()
    second = trainer(architecture, checkpoint_every_s=0, report=rest)
    assert_as_uninterrupted(architecture, second.model, second.run())
    # The step whose report was the kill is the only one done again.
    assert len(rest.seen) <= REPORTS - kill_at + 1


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_a_training_killed_after_every_step_ends_the_same(trainer, assert_as_uninterrupted, architecture):
    for _ in range(REPORTS):
        one = trainer(architecture, checkpoint_every_s=0, report=Reports(2))
        try:
            position = one.run()
        except Killed:
            continue
        break
    assert_as_uninterrupted(architecture, one.model, position)


def test_without_checkpoints_inside_an_epoch_the_last_epoch_is_repeated(
    trainer, assert_as_uninterrupted, monkeypatch
):
    monkeypatch.setattr(loop, "_LEAST_BETWEEN_SAVES_S", 0)
    monkeypatch.setattr(loop, "_MOST_SAVING", math.inf)
    with pytest.raises(Killed):
        trainer(report=Reports(HEAD_REPORTS + 9)).run()
    rest = Reports()
    second = trainer(report=rest)
    assert_as_uninterrupted("vit", second.model, second.run())
    assert len(rest.seen) == 6


def test_a_state_that_takes_long_to_write_is_not_written_after_every_short_epoch(trainer, monkeypatch):
    written, save_state = [], loop.save_state

    def slow(folder, fingerprint, place, *learning):
        written.append((place.phase, place.epoch))
        time.sleep(0.2)
        save_state(folder, fingerprint, place, *learning)

    monkeypatch.setattr(loop, "_LEAST_BETWEEN_SAVES_S", 0)
    monkeypatch.setattr(loop, "save_state", slow)
    trainer().run()
    # Of four epochs: the first, whose cost is not known yet, and the ends of both phases.
    assert written == [(0, 1), (0, 2), (1, 2)]


def test_a_kill_before_the_first_checkpoint_only_costs_time(trainer, assert_as_uninterrupted):
    with pytest.raises(Killed):
        trainer(report=Reports(REPORTS - 1)).run()
    second = trainer()
    assert_as_uninterrupted("vit", second.model, second.run())


def test_a_finished_training_run_again_does_nothing_and_gives_the_same(trainer, assert_as_uninterrupted):
    trainer().run()
    again = Reports()
    second = trainer(report=again)
    assert_as_uninterrupted("vit", second.model, second.run())
    assert again.seen == []


@pytest.mark.parametrize("steps", [1, 7, 11, 18])
def test_a_stop_saves_the_state_and_the_next_run_goes_on(trainer, assert_as_uninterrupted, steps):
    done = Reports()
    with pytest.raises(TrainingStopped, match="continues from here") as stopped:
        trainer(report=done, should_stop=lambda: len(done.seen) >= steps).run()
    assert stopped.value.exit_code == 143
    assert len(done.seen) == steps
    rest = Reports()
    second = trainer(report=rest)
    assert_as_uninterrupted("vit", second.model, second.run())
    assert len(rest.seen) == REPORTS - steps


def test_a_loss_scaler_goes_on_where_it_was(trainer, weights, assert_same, monkeypatch):
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=1024.0, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda enabled: scaler())

    def scaled(folder, **options):
        return trainer("resnet50", folder, checkpoint_every_s=0, **options)

    first, half, second = scaled("whole"), scaled("state", report=Reports(9)), scaled("state")
    first.run()
    with pytest.raises(Killed):
        half.run()
    second.run()
    assert second.learner.scaler.state_dict() == first.learner.scaler.state_dict()
    assert first.learner.scaler.get_scale() > 1024
    assert_same(weights(first.model), weights(second.model))


# What a state belongs to


@pytest.mark.parametrize("what", ["settings", "rows", "labels", "validation", "fingerprint", "model"])
def test_the_state_of_another_training_is_ignored(trainer, films, make_model, weights, assert_same, what):
    train = films()
    change = {
        "settings": {"weight_decay": 0.5},
        "rows": {"train": replace(train, rows=np.roll(train.rows, 2))},
        "labels": {"train": replace(train, labels=1 - train.labels)},
        "validation": {"validation": films(30, seed=9)},
        "fingerprint": {"fingerprint": "other films"},
        "model": {"model": make_model("vit", model_options={"drop_rate": 0.2})},
    }[what]
    trainer().run()
    reports = Reports()
    second = trainer(report=reports, **change)
    position = second.run()
    assert len(reports.seen) == REPORTS and len(position.history) == 4
    if what in ("settings", "rows", "labels"):
        alone = trainer(folder="alone", **change)
        assert history_of(alone.run()) == history_of(position)
        assert_same(weights(alone.model), weights(second.model))


@pytest.mark.parametrize("name", [STATE_FILE, "best-*.safetensors"])
@pytest.mark.parametrize("left", [0, 5000, None])
def test_a_truncated_or_missing_file_only_costs_time(trainer, tmp_path, assert_as_uninterrupted, name, left):
    with pytest.raises(Killed):
        trainer(checkpoint_every_s=0, report=Reports(9)).run()
    [path] = (tmp_path / "state").glob(name)
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    reports = Reports()
    second = trainer(report=reports)
    assert_as_uninterrupted("vit", second.model, second.run())
    assert len(reports.seen) == REPORTS


def test_another_training_killed_in_the_same_folder_leaves_none_of_its_weights(
    trainer, monkeypatch, assert_as_uninterrupted
):
    trainer().run()

    def kill(*arguments):
        raise Killed

    # Between the best weights and the state that goes with them.
    monkeypatch.setattr(loop, "save_state", kill)
    with pytest.raises(Killed):
        trainer(seed=5).run()
    monkeypatch.undo()
    again = trainer()
    assert_as_uninterrupted("vit", again.model, again.run())


def test_a_kill_between_the_best_weights_and_their_state_leaves_the_state_its_own(
    trainer, monkeypatch, assert_as_uninterrupted, tmp_path
):
    save, calls = loop.save_state, []

    def kill_at_the_end_of_the_second_phase(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise Killed
        save(*arguments)

    monkeypatch.setattr(loop, "save_state", kill_at_the_end_of_the_second_phase)
    with pytest.raises(Killed):
        trainer().run()
    monkeypatch.undo()
    assert len(list((tmp_path / "state").glob("best-*"))) == 2
    again = trainer()
    assert_as_uninterrupted("vit", again.model, again.run())
    assert len(list((tmp_path / "state").glob("best-*"))) == 1


def test_how_often_checkpoints_are_written_does_not_make_another_training(trainer):
    trainer().run()
    reports = Reports()
    trainer(checkpoint_every_s=1, report=reports).run()
    assert reports.seen == []


def test_what_is_kept_of_a_finished_training_is_its_place_and_its_best_weights(trainer, tmp_path):
    position = trainer(checkpoint_every_s=0).run()
    with safe_open(tmp_path / "state" / STATE_FILE, "pt") as state:
        assert list(state.keys()) == []
        assert json.loads(state.metadata()["position"])["history"] == position.history
    assert load_file(tmp_path / "state" / position.best_file)


def test_the_folder_holds_safetensors_and_nothing_else(trainer, tmp_path):
    with pytest.raises(Killed):
        trainer(checkpoint_every_s=0, report=Reports(REPORTS - 1)).run()
    files = sorted((tmp_path / "state").iterdir())
    assert [path.name for path in files] == [read_position(tmp_path / "state")[1].best_file, STATE_FILE]
    for path in files:
        assert load_file(path)
        with pytest.raises((pickle.UnpicklingError, KeyError, ValueError, EOFError)):
            pickle.loads(path.read_bytes())
        assert not zipfile.is_zipfile(path)


# Repeatability


def test_equal_seeds_give_equal_weights_whatever_the_global_generators(trainer, assert_as_uninterrupted):
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    one = trainer()
    torch.rand(7)
    assert_as_uninterrupted("vit", one.model, one.run())


def test_another_seed_gives_other_weights(trainer, uninterrupted, weights):
    one = trainer(seed=1)
    one.run()
    expected = uninterrupted("vit")[0]
    assert not torch.equal(weights(one.model)["head.weight"], expected["head.weight"])


# Steps


def test_steps_are_those_of_a_plain_loop(trainer, make_model, weights):
    """Reimplemented without accumulation, phases or checkpoints."""
    phase = Phase("all", 2, 3e-3, None)
    options = {"phases": (phase,), "augmentation": STILL, "label_smoothing": 0.1, "weight_decay": 0.2}
    one = trainer(model=make_model("vit", model_options={}), **options)
    one.run()
    assert one.position.best["epoch"] == 2

    plain = make_model("vit", model_options={})
    plain.train()
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, step, films = torch.optim.AdamW(groups), 0, one.train
    for epoch in range(2):
        order = np.random.default_rng([0, 0, epoch]).permutation(40)
        for batch in order.reshape(5, 8):
            logits = plain(plain.prepare(films.pixels[batch]))
            loss = cross_entropy(logits, torch.from_numpy(films.labels[batch]), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * learning_rate_share(step, 10, 0.1)
            optimizer.step()
            step += 1
    for name, value in weights(plain).items():
        assert torch.allclose(weights(one.model)[name], value, atol=2e-4), name


@pytest.mark.parametrize("augmentation", [STILL, Augmentation()], ids=["still", "augmented"])
def test_accumulated_gradients_are_those_of_the_whole_batch(trainer, make_model, films, augmentation):
    gradients = []
    for micro in (16, 4, 5):
        one = trainer(
            folder=f"micro{micro}",
            model=make_model("vit", model_options={}),
            train=films(16),
            phases=(Phase("all", 1, 1e-3, None),),
            batch_films=16,
            micro_batch_films=micro,
            augmentation=augmentation,
        )
        one.run()
        gradients.append([p.grad for p in one.model.parameters()])
    for other in gradients[1:]:
        for expected, value in zip(gradients[0], other, strict=True):
            assert torch.allclose(value, expected, rtol=1e-3, atol=1e-6)


def test_no_film_is_left_alone_for_a_batch_norm(trainer, films):
    """17 films in parts of at most 16 are 9 and 8: a part of one cannot be normalised."""
    one = trainer(
        "resnet50",
        train=films(17),
        phases=(Phase("all", 1, 1e-3, None),),
        batch_films=17,
        micro_batch_films=16,
    )
    assert len(one.run().history) == 1


def test_every_row_is_used_once_an_epoch_in_another_order_each_time(trainer, films, monkeypatch):
    train, seen = films(21), []
    train = replace(train, rows=np.concatenate([train.rows[:19], [3, 3]]), labels=train.labels)
    one = trainer(train=train)
    monkeypatch.setattr(one, "_step", lambda phase, source, batch, content, total: seen.append(batch))
    phase = Phase("all", 2, 1e-3, None)
    one.learner = Learner(one.model, phase, one.settings)
    sources = one._sources(phase)
    for epoch in range(2):
        one.position.epoch = epoch
        one._run_epoch(phase, *sources)
        one.position.epoch = epoch
    assert [len(batch) for batch in seen] == [7] * 6
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(range(21)) and list(first) != list(second)


# Phases


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_the_head_phase_leaves_the_whole_backbone_as_it_was(trainer, make_model, weights, architecture):
    one = trainer(architecture, phases=(Phase("head", 2, 1e-2, 0),))
    before = weights(one.model)
    one.run()
    after = weights(one.model)
    head = {f"{name}.{part}" for name in ("fc", "head") for part in ("weight", "bias")} & before.keys()
    assert len(head) == 2 and (architecture == "vit" or any("running_mean" in name for name in before))
    assert {name for name in before if not torch.equal(before[name], after[name])} == head


@pytest.mark.parametrize(
    ("architecture", "learning"), [("resnet50", ("layer4.", "fc.")), ("vit", ("blocks.5.", "norm.", "head."))]
)
def test_one_block_trains_that_block_and_the_head_alone(trainer, weights, architecture, learning):
    one = trainer(architecture, phases=(Phase("finetune", 2, 1e-2, 1),))
    before = weights(one.model)
    one.run()
    after = weights(one.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(learning)}


def test_a_phase_of_no_epochs_is_skipped(trainer):
    one = trainer(phases=(Phase("head", 0, 1e-3, 0), Phase("finetune", 1, 1e-3, None)))
    assert [row["phase"] for row in one.run().history] == ["finetune"]


def test_no_epochs_at_all_leave_the_model_as_it_was(trainer, weights, assert_same):
    one = trainer(phases=(Phase("head", 0, 1e-3, 0),))
    before = weights(one.model)
    assert one.run().best is None
    assert_same(weights(one.model), before)


def test_a_phase_ends_after_patience_and_the_best_epochs_weights_stay(trainer, films, weights, assert_same):
    """Trained on swapped labels, the model gets worse from the first epoch on."""
    train = films()
    phases = (Phase("head", 1, 1e-5, 0), Phase("finetune", 9, 3e-3, None))
    one = trainer(train=replace(train, labels=1 - train.labels), phases=phases, patience_epochs=3)
    position = one.run()
    assert [row["phase"] for row in position.history] == ["head"] + ["finetune"] * 3
    assert (position.best["phase"], position.best["epoch"]) == ("head", 1)
    alone = trainer(folder="alone", train=one.train, phases=phases[:1])
    alone.run()
    assert_same(weights(one.model), weights(alone.model))


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_the_recorded_results_are_those_of_the_model_that_is_returned(trainer, uninterrupted, architecture):
    one = trainer(architecture, phases=(Phase("all", 3, 1e-2, None),))
    position = one.run()
    best = max(position.history, key=lambda row: (row["validation_auc"], -row["validation_loss"]))
    assert position.best == {key: best[key] for key in position.best}
    probabilities = one.model.predict(one.validation.pixels).astype(float)
    probabilities /= probabilities.sum(1, keepdims=True)
    labels = one.validation.labels
    assert position.best["validation_auc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]))
    assert position.best["validation_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)


# Divergence


def test_a_loss_that_is_not_finite_ends_the_training_with_a_sentence(trainer, tmp_path):
    assert TrainingDiverged.exit_code == 5
    with pytest.raises(TrainingDiverged, match="not finite in epoch 1 of all: lower its learning rate"):
        trainer(phases=(Phase("all", 2, 1e25, None),)).run()
    assert not list((tmp_path / "state").glob("best*"))


def test_predictions_that_are_not_finite_end_the_training_with_a_sentence(trainer, films, tmp_path):
    with pytest.raises(TrainingDiverged, match="predictions are not finite: lower the learning rate"):
        trainer(train=films(8), phases=(Phase("all", 1, 1e25, None),)).run()
    assert not (tmp_path / "state").exists()


# Learning


@pytest.mark.parametrize("architecture", ["resnet50", "vit"])
def test_separable_films_are_learnt(trainer, architecture):
    one = trainer(architecture, phases=(Phase("head", 1, 1e-2, 0), Phase("finetune", 5, 1e-2, None)))
    assert one.run().best["validation_auc"] > 0.9
    assert (one.model.predict(one.validation.pixels).argmax(1) == one.validation.labels).mean() > 0.9


def test_three_classes_are_learnt_and_judged_by_the_mean_auc(trainer, films, make_model):
    validation = films(24, classes=3, seed=9)
    one = trainer(
        model=make_model("vit", classes=3),
        train=films(42, classes=3),
        validation=validation,
        phases=(Phase("head", 1, 3e-3, 0), Phase("finetune", 4, 3e-3, None)),
    )
    position = one.run()
    scores = one.model.predict(validation.pixels).astype(float)
    scores /= scores.sum(1, keepdims=True)
    expected = roc_auc_score(validation.labels, scores, multi_class="ovr", average="macro")
    assert position.best["validation_auc"] == pytest.approx(expected) and expected > 0.9


def test_memory_mapped_films_are_read_by_row(trainer, films, tmp_path, weights, assert_same):
    train = films()
    turned = np.roll(train.pixels, 5, axis=0)
    np.save(tmp_path / "films.npy", turned)
    mapped = np.load(tmp_path / "films.npy", mmap_mode="r")
    rows = (train.rows + 5) % 40
    first, second = trainer(), trainer(folder="mapped", train=Films(mapped, rows, train.labels))
    first.run()
    second.run()
    assert_same(weights(first.model), weights(second.model))


def test_progress_names_phase_epoch_and_batches(trainer):
    reports = Reports()
    position = trainer(report=reports).run()
    batches = [r for r in reports.seen if r.epoch_result is None]
    assert [(r.phase, r.epoch, r.batches_done, r.batches) for r in batches] == [
        (phase, 1 + step // 5, step + 1, 10) for phase in ("head", "finetune") for step in range(10)
    ]
    assert [r.epoch_result for r in reports.seen if r.epoch_result] == position.history
    assert all(math.isfinite(row["train_loss"]) and row["seconds"] > 0 for row in position.history)
    assert position.history[1]["train_loss"] < position.history[0]["train_loss"]


def test_mixed_precision_is_for_cuda_and_takes_what_the_card_has(monkeypatch):
    cuda = torch.device("cuda")
    assert amp_type(torch.device("cpu"), True) is None
    assert amp_type(cuda, False) is None
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bfloat16: has)
        assert amp_type(cuda, True) is expected
