"""Decisions of a person about single films, kept in a table and applied to the manifest."""

import csv
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from openmed.errors import BadInput

COLUMNS = ("film", "decision", "label", "reason", "by")
DECISIONS = ("keep", "exclude", "relabel")
EXCLUDED = "excluded"
"""Status of a film that a reviewer took out."""

_FEWEST_DIGITS = 8
_FILM = re.compile(rf"[0-9a-f]{{{_FEWEST_DIGITS},64}}")


def read_decisions(path: Path, class_names: Iterable[str]) -> pd.DataFrame:
    """Reads the decisions; a file with its header line alone holds none.

    Args:
        path: A CSV file with the columns film (sha256 of a film's file or its first 8 digits or
            more), decision (keep, exclude or relabel), label (the new class, for relabel alone),
            reason and by (both free text, never repeated anywhere).
        class_names: The known classes.

    Returns:
        The same columns as text, and line, where each decision ends in the file.

    Raises:
        BadInput: The file is missing or malformed, a decision or a class is unknown, or one film
            has two decisions. The line is named.
    """
    known, rows = set(class_names), []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise BadInput(f"{path} must have the columns {', '.join(COLUMNS)}")
            for row in table:
                rows.append(_checked(row, f"{path}, line {table.line_num}", known) | {"line": table.line_num})
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist: restore it, its header line alone means none") from None
    except (OSError, ValueError, csv.Error):
        raise BadInput(f"{path} cannot be read: save it as a CSV file in UTF-8") from None
    decisions = pd.DataFrame(rows, columns=[*COLUMNS, "line"])
    _refuse_contradictions(decisions, decisions["film"], path)
    return decisions


def apply_decisions(
    manifest: pd.DataFrame, decisions: pd.DataFrame, class_names: Sequence[str], path: Path
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Excludes and relabels films; exact copies of a film share its decision.

    Of a manifest with the columns sha256, label (int, a position in `class_names`), status and reason.

    Returns:
        The manifest with the columns decision (empty without one), original_label and relabelled
        (bool), and the counts excluded, relabelled, kept (films) and unknown (decisions on films
        that are not there; films come and go).

    Raises:
        BadInput: A shortened film fits two films, or one film has two decisions.
    """
    manifest = manifest.assign(original_label=manifest["label"])
    digests = _digests(decisions, manifest["sha256"], path)
    _refuse_contradictions(decisions, digests.where(digests != "", decisions["film"]), path)
    by_film = decisions.assign(film=digests)[digests != ""].drop_duplicates("film").set_index("film")
    decided = manifest.loc[manifest["sha256"].isin(by_film.index), "sha256"]
    manifest["decision"] = ""
    manifest.loc[decided.index, "decision"] = decided.map(by_film["decision"].to_dict())
    excluded = (manifest["decision"] == "exclude") & (manifest["status"] == "accepted")
    manifest.loc[excluded, ["status", "reason"]] = [EXCLUDED, "excluded by a reviewer"]
    names = {name: index for index, name in enumerate(class_names)}
    corrections = by_film.loc[by_film["decision"] == "relabel", "label"].map(names)
    relabelled = decided.map(corrections.to_dict()).dropna().astype("int64")
    manifest.loc[relabelled.index, "label"] = relabelled
    manifest["relabelled"] = manifest["label"] != manifest["original_label"]
    counts = {
        "excluded": int(excluded.sum()),
        "relabelled": int(manifest["relabelled"].sum()),
        "kept": int((manifest["decision"] == "keep").sum()),
        "unknown": int((digests == "").sum()),
    }
    return manifest, counts


def _checked(row: dict, place: str, known: set[str]) -> dict:
    if None in row or None in row.values():
        raise BadInput(f"{place}: give {len(COLUMNS)} values, quoted where one holds a comma")
    row = {name: value.strip() for name, value in row.items()}
    row["film"] = row["film"].lower()
    if not _FILM.fullmatch(row["film"]):
        raise BadInput(f"{place}: film must be the sha256 of a film or its first 8 digits or more")
    if row["decision"] not in DECISIONS:
        raise BadInput(f"{place}: the decision must be one of {', '.join(DECISIONS)}")
    if row["decision"] == "relabel" and row["label"] not in known:
        raise BadInput(f"{place}: to relabel, give one of the classes {', '.join(sorted(known))}")
    return row


def _digests(decisions: pd.DataFrame, known: pd.Series, path: Path) -> pd.Series:
    """The whole sha256 that each decision speaks of, empty where no film fits."""
    near = known[known.str[:_FEWEST_DIGITS].isin(decisions["film"].str[:_FEWEST_DIGITS])]
    digests, whole = sorted(set(near)), []
    for film, line in zip(decisions["film"], decisions["line"], strict=True):
        position = bisect_left(digests, film)
        fitting = [digest for digest in digests[position : position + 2] if digest.startswith(film)]
        if len(fitting) > 1:
            raise BadInput(f"{path}, line {line}: {film} fits more than one film: give more digits")
        whole.append(fitting[0] if fitting else "")
    return pd.Series(whole, index=decisions.index, dtype=object)


def _refuse_contradictions(decisions: pd.DataFrame, films: pd.Series, path: Path) -> None:
    named = decisions.assign(film=films)
    # Only a relabelling says something by its label.
    named["label"] = named["label"].where(named["decision"] == "relabel", "")
    differing = named.drop_duplicates(["film", "decision", "label"])
    second = differing[differing["film"].duplicated()]
    if len(second):
        raise BadInput(
            f"{path}, line {second['line'].iloc[0]}: the film has another decision on a line before: keep one"
        )
