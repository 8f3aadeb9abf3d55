"""Balances the classes of the training rows (imbalanced-learn); other splits stay as they are."""

import numpy as np
import pandas as pd

from openmed.dataset.leakage import verify_training_rows
from openmed.dataset.sampling import resample_rows
from openmed.files import atomic_path, read_table, write_json
from openmed.fitted.calibration import prior_correction
from pipeline.settings.artifacts import ROWS, SPLIT, SPLIT_COLUMNS, folder
from pipeline.settings.params import Params


def run(params: Params) -> None:
    """Reads the split and writes the list of training rows, in which films may repeat."""
    split = read_table(SPLIT, needed=SPLIT_COLUMNS)
    films = split[split["split"] == "train"].reset_index(drop=True)
    rows = films.iloc[resample_rows(films["label"].to_numpy(), params.resample.strategy, params.run.seed)]
    verified = verify_training_rows(rows, split)
    with atomic_path(ROWS) as temporary:
        rows[["id", "label"]].reset_index(drop=True).to_parquet(temporary)
    before, after = (_counts(part["label"], params.task.classes) for part in (films, rows))
    # Refused here and not after the training: evaluate undoes the change of the class shares by these counts.
    prior_correction(list(before.values()), list(after.values()))
    strategy = params.resample.strategy
    summary = {"strategy": strategy, "before": before, "after": after, "training_rows_verified": verified}
    write_json(folder("resample") / "summary.json", summary)
    print(f"resample ({strategy}): {before} -> {after}")


def _counts(labels: pd.Series, classes: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
