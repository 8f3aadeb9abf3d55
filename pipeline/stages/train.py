"""Fine-tunes one architecture in two steps: its head, then its backbone. Resumes after a kill."""

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from openmed.cache.film_cache import FilmCache
from openmed.dataset.leakage import verify_training_rows
from openmed.errors import BadInput
from openmed.files import atomic_path, read_table, sha256_file, write_json
from openmed.inference.checkpoint import save_model
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory
from openmed.training.loop import Progress, Trainer
from openmed.training.parallel import Workers, joined, started_by_torchrun
from openmed.training.settings import Augmentation, Phase, TrainSettings
from openmed.training.source import Films
from openmed.training.state import Position
from pipeline.settings.artifacts import CACHE, ROWS, SPLIT, SPLIT_COLUMNS, VAULT, folder
from pipeline.settings.params import Params, Train
from pipeline.settings.project import checkpoint_folder, home
from pipeline.tools.device import pick_device, use_device
from pipeline.tools.terminal import progress
from pipeline.tools.torchrun import end_with_parent, run_processes


def run(params: Params, architecture: str) -> None:
    """Trains on the balanced rows, stops early on the validation split, writes a model folder.

    With `run.processes` above 1 this process starts that many and waits for them.
    """
    if params.run.processes > 1 and not started_by_torchrun():
        run_processes(params.run.processes, "pipeline", "train", "--architecture", architecture)
        return
    if started_by_torchrun():
        end_with_parent()
    use_device(params)
    device = pick_device(params.run.device)
    with joined(device) as workers, _stop_on_sigterm() as stopped:
        model, position = _train(params, architecture, device, workers, stopped)
        workers.wait()  # until each has read the best weights
        if workers.leads:
            _write(architecture, model, position)
            # What is finished starts from nothing when it is run again.
            shutil.rmtree(checkpoint_folder(home(), Path.cwd(), architecture), ignore_errors=True)


def _train(
    params: Params, architecture: str, device: torch.device, workers: Workers, stopped: Callable[[], bool]
) -> tuple[BaseModel, Position]:
    settings = train_settings(params, architecture)
    model = create_model(params, architecture)
    rows, split = read_table(ROWS, needed=("id", "label")), read_table(SPLIT, needed=SPLIT_COLUMNS)
    verify_training_rows(rows, split)  # the files may be of different runs
    cache = FilmCache(CACHE, model.spec.image_size_px)
    with _shown(settings, len(rows), workers.leads) as report:
        trainer = Trainer(
            model.to(device),
            _films(cache, rows),
            _films(cache, split[split["split"] == "validation"]),
            settings,
            checkpoint_folder(home(), Path.cwd(), architecture),
            fingerprint=sha256_file(CACHE / "cache.json") + sha256_file(ROWS) + device.type,
            workers=workers,
            report=report,
            should_stop=stopped,
        )
        return model, trainer.run()


def train_settings(params: Params, architecture: str) -> TrainSettings:
    """Turns an architecture's section of params.yaml into the library's settings; raises as `section_of`."""
    section = section_of(params, architecture)
    head, finetune = section.head.model_dump(), section.finetune.model_dump()
    if finetune["blocks"] == "all":
        finetune["blocks"] = None
    return TrainSettings(
        phases=(Phase("head", blocks=0, **head), Phase("finetune", **finetune)),
        batch_films=section.batch_films,
        micro_batch_films=section.micro_batch_films,
        weight_decay=section.weight_decay,
        label_smoothing=section.label_smoothing,
        warmup_share=section.warmup_share,
        patience_epochs=section.patience_epochs,
        augmentation=Augmentation(**section.augment.model_dump()),
        mixed_precision=section.mixed_precision,
        activation_checkpointing=section.activation_checkpointing,
        compile=section.compile,
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
    """An architecture's training settings; BadInput where params.yaml has none."""
    if architecture not in params.train:
        raise BadInput(f"params.yaml has no `train.{architecture}`: it has {', '.join(params.train)}")
    return params.train[architecture]


def _films(cache: FilmCache, rows: pd.DataFrame) -> Films:
    return Films(cache.films, cache.rows(rows["id"]), rows["label"].to_numpy())


def _write(architecture: str, model: BaseModel, position: Position) -> None:
    target = folder("train", architecture)
    save_model(target / "model", model)
    table, best = pd.DataFrame(position.history), position.best or {}
    with atomic_path(target / "history.csv") as temporary:
        table.drop(columns="seconds").to_csv(temporary, index_label="step")
    reached = table.groupby("phase", sort=False)["validation_auc"].max().to_dict()
    write_json(
        target / "summary.json",
        {
            "best_phase": best.get("phase"),
            "best_epoch": best.get("epoch"),
            "validation_auc": best.get("validation_auc"),
            "validation_auc_of_phase": reached,
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
    signals: list[int] = []
    before = {
        sign: signal.signal(sign, lambda number, frame: signals.append(number))
        for sign in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(signals)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


@contextmanager
def _shown(settings: TrainSettings, films: int, leads: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left on a terminal, one line an epoch in a log; nothing of further processes."""
    if not leads:
        yield lambda state: None
        return
    batches = -(-films // settings.batch_films) * sum(phase.epochs for phase in settings.phases)
    if not sys.stderr.isatty():
        yield lambda state: _print_epoch(state)
        return
    with progress(batches, "train") as tick:
        yield lambda state: _print_epoch(state) if state.epoch_result else tick()


def _print_epoch(state: Progress) -> None:
    if row := state.epoch_result:
        done = state.batches_done
        left = (state.batches - done) * row["seconds"] / max(1, done // row["epoch"])
        print(
            f"{row['phase']} epoch {row['epoch']}: loss {row['train_loss']:.3f}, validation loss "
            f"{row['validation_loss']:.3f}, AUC {row['validation_auc']:.3f}, {row['seconds']:.1f} s, "
            f"at most {left:.0f} s of this phase left",
            flush=True,
        )
