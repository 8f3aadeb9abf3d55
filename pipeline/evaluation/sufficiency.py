"""Whether the splits hold what later stages need of every class, counted before anything is trained."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from openmed.dataset.sampling import SMOTE_FEWEST_FILMS
from openmed.dataset.splits import SPLITS
from openmed.errors import BadInput
from openmed.fitted.abstention import fewest_patients
from openmed.fitted.calibration import FEWEST_FILMS
from openmed.fitted.novelty import fewest_training_films

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.settings.params import Params


class _Need(NamedTuple):
    """What something wants of every class: so many films or patients in a split."""

    split: str
    unit: str
    number: int
    what: str
    setting: str


def check_classes(films: "pd.DataFrame", params: "Params") -> None:
    """Refuses splits in which a class has fewer films or patients than a later stage needs.

    Films are one row each: id, split, label, patient.

    Raises:
        BadInput: One sentence names the class, the split, what was found and needed.
    """
    classes = params.task.classes
    missing = [
        (need, name, count)
        for need in _needs(params)
        for name, count in zip(classes, _counts(films, need, len(classes)), strict=True)
        if count < need.number
    ]
    if missing:
        raise BadInput(_sentence(missing, params.split.shares))
    _check_training_films(films, params)


def _needs(params: "Params") -> list[_Need]:
    """What is needed with these settings, the most of a split and unit first."""
    own = params.evaluate
    needs = [_Need(split, "film", 1, "every stage", "") for split in SPLITS]
    if own.calibration != "none":
        needed, what = FEWEST_FILMS[own.calibration], f"{own.calibration} calibration"
        needs.append(_Need("calibration", "film", needed, what, "evaluate.calibration"))
    if (coverage := own.abstention_coverage) is not None:
        what = f"abstention with a coverage of {coverage:g}"
        needed, setting = fewest_patients(coverage), "evaluate.abstention_coverage"
        needs.append(_Need("calibration", "patient", needed, what, setting))
    # Not named in dvc.yaml, as a change of one training shall not repeat all: where split is not run again,
    # the training itself refuses before its first step.
    needs += [
        _Need("train", "film", SMOTE_FEWEST_FILMS, "SMOTE", f"train.{name}.head.oversampling")
        for name in params.architectures
        if params.train[name].head.oversampling == "smote" and params.train[name].head.epochs
    ]
    return needs


def _counts(films: "pd.DataFrame", need: _Need, classes: int) -> list[int]:
    """Films or patients of each class in the split of a need."""
    part = films[films["split"] == need.split]
    column = {"film": "id", "patient": "patient"}[need.unit]
    return part.groupby("label")[column].nunique().reindex(range(classes), fill_value=0).tolist()


def _sentence(missing: Sequence[tuple[_Need, str, int]], shares: Mapping[Any, float]) -> str:
    parts = [
        f"{name} has {_number(count, f'{need.split} {need.unit}')} and {need.what} needs {need.number}"
        for need, name, count in missing
    ]
    settings = ["split.shares", *dict.fromkeys(need.setting for need, _, _ in missing if need.setting)]
    # In the shares of the split, a class must have so many in all.
    most = max((math.ceil(need.number / shares[need.split]), need.unit) for need, _, _ in missing)
    classes = " and ".join(dict.fromkeys(name for _, name, _ in missing))
    change = " or ".join(filter(None, (", ".join(settings[:-1]), settings[-1])))
    return (
        f"too few films of a class: {'; '.join(parts)}: give more films of {classes} (about "
        f"{_number(*most)} of a class in all) or change {change}"
    )


def _number(count: int, unit: str) -> str:
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _check_training_films(films: "pd.DataFrame", params: "Params") -> None:
    """Refuses fewer training films than the limit of films unlike them is learnt from; copies count once."""
    if params.evaluate.unlike_share is None:
        return
    count = films.loc[films["split"] == "train", "id"].str[:16].nunique()
    needed = fewest_training_films(len(params.task.classes))
    if count < needed:
        raise BadInput(
            f"the train split has {_number(count, 'film')} without copies, and {needed} are needed to tell "
            "films unlike them: give more films, change split.shares or set evaluate.unlike_share to null"
        )
