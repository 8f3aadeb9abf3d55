"""Chest-film phantoms: frontal look-alikes drawn by code, with the exact place of each opacity known.

They stand in for patients' films where none may be shipped (sample set, tests, benchmarks). They
are for exercising the software: nothing learned from them says anything about real films.
"""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from openmed.errors import BadInput
from openmed.files import sha256_file, write_bytes, write_text
from openmed.phantoms.anatomy import Canvas, draw_anatomy, draw_opacities, expose

CLASS_NAMES = ("NORMAL", "PNEUMONIA")
NOTICEABLE = 0.06  # added density (0 to 1) from which a pixel counts as inside an opacity
_JPEG_QUALITY = 88
_SAME_PATIENT, _OTHER_PATIENT, _EXACT = 6, 2, 1  # the planted copies
_COPIES = _SAME_PATIENT + _OTHER_PATIENT + _EXACT


@dataclass(frozen=True)
class Phantom:
    """One drawn film.

    Attributes:
        film: uint8 (S, S), dense tissue is bright.
        mask: bool (S, S), where an opacity adds noticeable density; all False on a normal film.
        patient: Name made of the patient seed.
        label: 1 with pneumonia, 0 without.
    """

    film: np.ndarray
    mask: np.ndarray
    patient: str
    label: int


@dataclass(frozen=True)
class PlannedFilm:
    """One file of the sample set: `draw` with its seeds gives the film and mask it was made of.

    Attributes:
        path: Path below the data folder, POSIX.
        patient: Name the film is filed under.
        label: Class name.
        patient_seed, film_seed, pneumonia: What `draw` wants.
        jpeg_quality: 1 to 100.
        grey_shift: Grey levels added to each pixel before encoding.
        copy_of: Path of the film this one repeats, empty for an original.
    """

    path: str
    patient: str
    label: str
    patient_seed: int
    film_seed: int
    pneumonia: bool
    jpeg_quality: int = _JPEG_QUALITY
    grey_shift: int = 0
    copy_of: str = ""


def draw(patient_seed: int, film_seed: int, *, pneumonia: bool, size_px: int = 256) -> Phantom:
    """Draws one film; the same arguments give the same bytes.

    The anatomy and the place of the opacities follow from `patient_seed`; pose, exposure, noise and
    the strength of the opacities from both seeds. Drawn with and without pneumonia, a film differs
    only in and closely around its mask.

    Seeds are 0 or more; pneumonia adds one to three opacities to the lungs; `size_px` is 32 or more;
    BadInput otherwise.
    """
    if min(patient_seed, film_seed) < 0:
        raise BadInput(f"seeds {patient_seed} and {film_seed}: give seeds of 0 or more")
    if size_px < 32:
        raise BadInput(f"size_px {size_px} is too small for a film: give 32 or more")
    pose = np.random.default_rng([patient_seed, film_seed, 1])
    canvas = Canvas(size_px, pose)
    density, lungs = draw_anatomy(canvas, np.random.default_rng([patient_seed, 0]))
    added = np.zeros_like(density)
    if pneumonia:
        strength = np.random.default_rng([patient_seed, film_seed, 3]).uniform(0.85, 1.15)
        added = draw_opacities(canvas, np.random.default_rng([patient_seed, 2])) * strength * lungs
    film = expose(density + added, canvas, np.random.default_rng([patient_seed, 4]), pose)
    return Phantom(film, added > NOTICEABLE, f"patient{patient_seed:04d}", int(pneumonia))


def sample_plan(
    films: int = 560, seed: int = 7, class_names: tuple[str, str] = CLASS_NAMES
) -> list[PlannedFilm]:
    """Plans a sample set: which film of which patient is filed under which name.

    One to four films a patient, about three with pneumonia to one without. Nine of them repeat another
    film: six near-duplicates under the same patient, two under another patient's name (a trap for
    splits that only look at names) and one exact copy.

    Raises:
        BadInput: Fewer than 30 films, a negative seed, or not two different class names.
    """
    if films < 30 or seed < 0:
        raise BadInput(f"films {films}, seed {seed}: give 30 films or more and a seed of 0 or more")
    if len(set(class_names)) != 2 or len(class_names) != 2:
        raise BadInput(f"class names {class_names}: give two different names, normal first")
    rng = np.random.default_rng([seed, 5])
    counts = _films_per_patient(films - _COPIES, rng)
    normal = _normal_patients(counts, rng)
    originals = []
    for index, count in enumerate(counts):
        sick = index not in normal
        film = PlannedFilm("", "", class_names[sick], seed * 100_000 + index + 1, 0, sick)
        originals += [_filed(replace(film, film_seed=k), index + 1, k) for k in range(1, count + 1)]
    return originals + _copies(originals, counts, rng)


def write_sample(
    folder: Path,
    *,
    films: int = 560,
    seed: int = 7,
    size_px: int = 192,
    class_names: tuple[str, str] = CLASS_NAMES,
) -> None:
    """Writes a sample set in the layout of a data folder: `films/<CLASS>/<name>.jpeg` and `films.csv`.

    Written again with the same arguments it leaves the same bytes, so that a run that was cut off can
    simply be repeated. The table comes last: a folder with a table is whole.

    Raises:
        BadInput: As `sample_plan` and `draw`, or the folder holds films that are not of this set.
    """
    plan = sample_plan(films, seed, class_names)
    folder = Path(folder)
    # Hidden files are what a killed run may have left of an atomic write.
    files = (p for p in (folder / "films").rglob("[!.]*") if p.is_file())
    present = {p.relative_to(folder).as_posix() for p in files}
    if foreign := sorted(present - {film.path for film in plan}):
        raise BadInput(f"{folder / foreign[0]} is not of this sample set: give an empty folder")
    for film in plan:
        write_bytes(folder / film.path, _encode(film, size_px))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "label", "patient", "split", "sha256"))
    for film in sorted(plan, key=lambda film: film.path):
        rows.writerow((film.path, film.label, film.patient, "", sha256_file(folder / film.path)))
    write_text(folder / "films.csv", table.getvalue())


def _encode(planned: PlannedFilm, size_px: int) -> bytes:
    drawn = draw(planned.patient_seed, planned.film_seed, pneumonia=planned.pneumonia, size_px=size_px)
    film = cv2.add(drawn.film, np.full_like(drawn.film, planned.grey_shift))
    return cv2.imencode(".jpeg", film, (cv2.IMWRITE_JPEG_QUALITY, planned.jpeg_quality))[1].tobytes()


def _films_per_patient(films: int, rng: np.random.Generator) -> list[int]:
    counts: list[int] = []
    while films > 0:
        counts.append(min(films, int(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1))) + 1))
        films -= counts[-1]
    return counts


def _normal_patients(counts: list[int], rng: np.random.Generator) -> set[int]:
    """Picks patients until a quarter of the films is normal."""
    normal: set[int] = set()
    for index in rng.permutation(len(counts)).tolist():
        if sum(counts[i] for i in normal) >= sum(counts) / 4:
            break
        normal.add(index)
    return normal


def _filed(film: PlannedFilm, number: int, position: int) -> PlannedFilm:
    patient = f"patient{number:04d}"
    return replace(film, patient=patient, path=f"films/{film.label}/{patient}_{position}.jpeg")


def _copies(originals: list[PlannedFilm], counts: list[int], rng: np.random.Generator) -> list[PlannedFilm]:
    changes = [{"jpeg_quality": 70}, {"grey_shift": 1}] * (_COPIES // 2) + [{}] * _EXACT
    last_films = np.cumsum(counts) - 1
    copies = []
    for k, patient in enumerate(rng.choice(len(counts), _COPIES, replace=False).tolist()):
        source = originals[last_films[patient]]
        number, position = patient + 1, counts[patient] + 1
        if _SAME_PATIENT <= k < _SAME_PATIENT + _OTHER_PATIENT:
            number, position = len(counts) + 1 + k - _SAME_PATIENT, 1
        copies.append(_filed(replace(source, copy_of=source.path, **changes[k]), number, position))
    return copies
