"""Assigns patients to training, validation, calibration and test; no patient and no copy crosses."""

import pandas as pd

from openmed.data.splits import LEFT_OUT, SPLITS, assign, group_patients, near_duplicates
from openmed.files import atomic_path, write_json
from pipeline.params import Params
from pipeline.stage import MANIFEST, SPLIT, folder, main


def run(params: Params) -> None:
    """Reads the manifest and writes one row a usable film with its split."""
    manifest = pd.read_parquet(MANIFEST)
    films = manifest[manifest["status"] == "accepted"].reset_index(drop=True)
    pairs = near_duplicates(films["perceptual_hash"].tolist(), params.split.near_duplicate_bits)
    films["group"] = group_patients(films["patient"], pairs)
    films["split"] = assign(films, params.split.shares, params.run.seed)
    patients = films["patient"].to_numpy()
    crossing = int((patients[pairs[:, 0]] != patients[pairs[:, 1]]).sum())
    with atomic_path(SPLIT) as temporary:
        films[["id", "patient", "label", "split"]].to_parquet(temporary)
    summary = _summary(films, params.task.classes)
    summary |= {"near_duplicate_pairs": len(pairs), "pairs_between_patients": crossing}
    write_json(folder("split") / "summary.json", summary)
    counts = ", ".join(f"{name} {content['films']}" for name, content in summary["splits"].items())
    print(f"split: {counts}; {len(pairs)} near-duplicate pairs, {crossing} between patients, kept together")


def _summary(films: pd.DataFrame, classes: tuple[str, ...]) -> dict:
    splits = {}
    for name in SPLITS:
        part = films[films["split"] == name]
        per_class = {label: int((part["label"] == index).sum()) for index, label in enumerate(classes)}
        splits[name] = {"films": len(part), "patients": int(part["patient"].nunique()), "classes": per_class}
    return {"splits": splits, "left_out": int((films["split"] == LEFT_OUT).sum())}


if __name__ == "__main__":
    main(run)
