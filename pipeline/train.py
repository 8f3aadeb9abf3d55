"""Fine-tunes one architecture in two steps: its head, then its backbone. Resumes after a kill."""

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd

from openmed.data.cache import FilmCache
from openmed.data.leakage import verify_training_rows
from openmed.errors import BadInput
from openmed.files import atomic_path, sha256_file, write_json
from openmed.models.base import BaseModel
from openmed.models.checkpoint import save_model
from openmed.models.factory import ModelFactory
from openmed.training.loop import Films, Progress, Trainer
from openmed.training.settings import Augmentation, Phase, TrainSettings
from pipeline.device import pick_device, use_device
from pipeline.params import Params, Train
from pipeline.project import home
from pipeline.stage import CACHE, ROWS, SPLIT, VAULT, folder, main, progress


def run(params: Params, architecture: str) -> None:
    """Trains on the balanced rows, stops early on the validation split, writes a model folder."""
    settings = train_settings(params, architecture)
    use_device(params)
    model = create_model(params, architecture)
    rows, split = pd.read_parquet(ROWS), pd.read_parquet(SPLIT)
    verify_training_rows(rows, split)  # the files may be of different runs
    cache = FilmCache(CACHE, model.spec.image_size_px)
    model.to(pick_device(params.run.device))
    with _stop_on_sigterm() as stopped, _shown(settings, len(rows)) as report:
        trainer = Trainer(
            model,
            _films(cache, rows),
            _films(cache, split[split["split"] == "validation"]),
            settings,
            _state_folder(architecture),
            fingerprint=sha256_file(CACHE / "cache.json") + sha256_file(ROWS) + str(model.device.type),
            report=report,
            should_stop=stopped,
        )
        result = trainer.run()
    _write(architecture, model, result.history, result.best)


def train_settings(params: Params, architecture: str) -> TrainSettings:
    """Turns an architecture's section of params.yaml into the library's settings.

    Raises:
        BadInput: The architecture is not in params.yaml.
    """
    section = section_of(params, architecture)
    blocks = None if section.finetune.blocks == "all" else section.finetune.blocks
    return TrainSettings(
        phases=(
            Phase("head", section.head.epochs, section.head.learning_rate, 0),
            Phase("finetune", section.finetune.epochs, section.finetune.learning_rate, blocks),
        ),
        batch_films=section.batch_films,
        micro_batch_films=section.micro_batch_films,
        weight_decay=section.weight_decay,
        label_smoothing=section.label_smoothing,
        warmup_share=section.warmup_share,
        patience_epochs=section.patience_epochs,
        augmentation=Augmentation(**section.augment.model_dump()),
        mixed_precision=section.mixed_precision,
        seed=params.run.seed,
    )


def create_model(params: Params, architecture: str) -> BaseModel:
    """Builds the model that the settings ask for, with its starting weights."""
    section = section_of(params, architecture)
    return ModelFactory.create(
        architecture,
        class_names=params.task.classes,
        positive=params.task.positive,
        timm_name=section.timm_name,
        image_size_px=params.preprocess.image_size_px[architecture],
        model_options=section.model_options,
        weights=section.weights,
        weights_sha256=section.weights_sha256,
        vault=VAULT,
        seed=params.run.seed,
    )


def section_of(params: Params, architecture: str) -> Train:
    """An architecture's training settings.

    Raises:
        BadInput: The architecture is not in params.yaml.
    """
    if architecture not in params.train:
        raise BadInput(f"params.yaml has no `train.{architecture}`: it has {', '.join(params.train)}")
    return params.train[architecture]


def _films(cache: FilmCache, rows: pd.DataFrame) -> Films:
    return Films(cache.films, cache.rows(rows["id"]), rows["label"].to_numpy())


def _state_folder(architecture: str):
    """Outside the outputs, which DVC deletes before a stage runs; apart for every workspace."""
    workspace = hashlib.sha256(str(folder("").resolve()).encode()).hexdigest()[:12]
    return home() / "checkpoints" / f"{workspace}-{architecture}"


def _write(architecture: str, model: BaseModel, history: list[dict], best: dict | None) -> None:
    target = folder("train", architecture)
    save_model(target / "model", model)
    table = pd.DataFrame(history)
    with atomic_path(target / "history.csv") as temporary:
        table.drop(columns="seconds").to_csv(temporary, index_label="step")
    best = best or {}
    write_json(
        target / "summary.json",
        {
            "best_phase": best.get("phase"),
            "best_epoch": best.get("epoch"),
            "validation_auc": best.get("validation_auc"),
            "epochs": len(table),
        },
    )
    print(
        f"train {architecture}: best epoch {best.get('epoch')} of {best.get('phase')}, "
        f"validation AUC {best.get('validation_auc', float('nan')):.3f}"
    )


@contextmanager
def _stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and Ctrl-C into a request that the training answers with a checkpoint."""
    asked: list[int] = []
    before = {
        sign: signal.signal(sign, lambda number, frame: asked.append(number))
        for sign in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(asked)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextmanager
def _shown(settings: TrainSettings, films: int) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left on a terminal, one line an epoch in a log."""
    batches = -(-films // settings.batch_films) * sum(phase.epochs for phase in settings.phases)
    if not sys.stderr.isatty():
        yield lambda state: _print_epoch(state)
        return
    with progress(batches, "train") as tick:
        yield lambda state: _print_epoch(state) if state.epoch_result else tick()


def _print_epoch(state: Progress) -> None:
    if row := state.epoch_result:
        left = (
            (state.batches - state.batches_done) * row["seconds"] / max(1, state.batches_done // row["epoch"])
        )
        print(
            f"{row['phase']} epoch {row['epoch']}: loss {row['train_loss']:.3f}, validation loss "
            f"{row['validation_loss']:.3f}, AUC {row['validation_auc']:.3f}, {row['seconds']:.1f} s, "
            f"at most {left:.0f} s of this phase left",
            flush=True,
        )


if __name__ == "__main__":
    main(run, per_architecture=True)
