"""Assigns patients to training, validation, calibration and test; no patient and no copy crosses."""

import numpy as np
import pandas as pd

from openmed.dataset import leakage
from openmed.dataset.duplicates import near_duplicates, same_film
from openmed.dataset.splits import LEFT_OUT, SPLITS, assign, group_patients
from openmed.files import atomic_path, read_table, write_json
from pipeline.evaluation.rules import Rules, check_floors
from pipeline.evaluation.sufficiency import check_classes
from pipeline.settings.artifacts import DATA, MANIFEST, MANIFEST_COLUMNS, SPLIT, folder
from pipeline.settings.params import Params
from pipeline.tools.terminal import progress


def run(params: Params) -> None:
    """Reads the manifest and writes one row a usable film with its split, and what the firewall found.

    Raises:
        BadInput: Too many films are filed under two labels, a split cannot be made, a later stage needs more
            films of a class in some split, or what is promised and asked of the models cannot be shown on
            the films that it gives.
        IntegrityError: A film that had to be looked at is not what the manifest recorded.
    """
    manifest = read_table(MANIFEST, needed=MANIFEST_COLUMNS)
    films = manifest[manifest["status"] == "accepted"].reset_index(drop=True)
    pairs = near_duplicates(films["perceptual_hash"].tolist(), params.split.near_duplicate_bits)
    same = _confirm(films, pairs)
    films["group"] = group_patients(films["patient"], pairs[same])
    films, findings = _assign(films, pairs, same, params)
    findings = [leakage.copies(films, pairs, same), *findings]
    with atomic_path(SPLIT) as temporary:
        films[["id", "patient", "label", "split"]].to_parquet(temporary)
    check_classes(films, params)
    check_floors(films, params.task.classes, Rules.of_each(params.model_dump(), "params.yaml"))
    write_json(folder("split") / "leakage.json", [finding.to_json() for finding in findings])
    copies, crossing = int(same.sum()), findings[0].found
    summary = _summary(films, params.task.classes)
    summary |= {"near_duplicate_pairs": copies, "pairs_between_patients": crossing}
    write_json(folder("split") / "summary.json", summary)
    counts = ", ".join(f"{name} {content['films']}" for name, content in summary["splits"].items())
    print(f"split: {counts}; {copies} near-duplicate pairs, {crossing} between patients, kept together")
    for finding in findings:
        if finding.outcome != "clean":
            print(f"split: {finding.check}, {finding.outcome}: {finding.detail}")


def _assign(
    films: pd.DataFrame, pairs: np.ndarray, same: np.ndarray, params: Params
) -> tuple[pd.DataFrame, list[leakage.Finding]]:
    """Adds the column split: films under two labels are left out, the rest is assigned and verified."""
    disputed = leakage.pairs_across_labels(films, pairs)
    confirmed = np.concatenate([pairs[same], disputed[_confirm(films, disputed)]])
    conflict, conflicts = leakage.label_conflicts(films, confirmed, params.split.max_conflicting_share)
    declared, validation = leakage.usable_validation(films)
    films = films.assign(declared_split=declared, split=LEFT_OUT)
    films.loc[~conflict, "split"] = assign(
        films[~conflict], dict(params.split.shares.items()), params.run.seed, params.task.classes
    )
    return films, [
        conflicts,
        leakage.patients_of_several_labels(films),
        validation,
        leakage.declared_overlap(films, conflict),
        leakage.verify_patients(films),
        leakage.verify_copies(films, pairs[same]),
    ]


def _confirm(films: pd.DataFrame, pairs: np.ndarray) -> np.ndarray:
    with progress(len(pairs), "compare copies") as tick:
        return same_film(DATA, films, pairs, tick)


def _summary(films: pd.DataFrame, classes: tuple[str, ...]) -> dict:
    splits = {}
    for name in SPLITS:
        part = films[films["split"] == name]
        per_class = {label: int((part["label"] == index).sum()) for index, label in enumerate(classes)}
        splits[name] = {"films": len(part), "patients": int(part["patient"].nunique()), "classes": per_class}
    return {"splits": splits, "left_out": int((films["split"] == LEFT_OUT).sum())}
