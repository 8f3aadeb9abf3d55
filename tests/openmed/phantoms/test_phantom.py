import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from openmed.errors import BadInput
from openmed.files import sha256_file
from openmed.phantoms.phantom import PlannedFilm, draw, sample_plan, write_sample

SIZE = 96


def stored_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pair(seed: int, size_px: int = SIZE):
    return tuple(draw(seed, 1, pneumonia=sick, size_px=size_px) for sick in (False, True))


def redrawn(film: PlannedFilm, size_px: int = SIZE):
    return draw(film.patient_seed, film.film_seed, pneumonia=film.pneumonia, size_px=size_px)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, films=60, size_px=SIZE)
    return folder


def test_same_seeds_give_the_same_film_and_other_seeds_another():
    first, again = (draw(3, 2, pneumonia=True) for _ in range(2))
    assert first.film.dtype == np.uint8 and first.mask.dtype == bool
    assert first.film.shape == first.mask.shape == (256, 256)
    assert np.array_equal(first.film, again.film) and np.array_equal(first.mask, again.mask)
    assert (first.patient, first.label) == ("patient0003", 1)
    assert not np.array_equal(first.film, draw(3, 1, pneumonia=True).film)
    assert not np.array_equal(first.film, draw(4, 2, pneumonia=True).film)


@pytest.mark.parametrize(("size_px", "alike"), [(32, 0.93), (64, 0.97), (225, 0.99), (320, 0.99)])
def test_a_film_looks_alike_at_every_size(size_px, alike):
    shown = draw(3, 1, pneumonia=True, size_px=size_px)
    small, reference = (
        cv2.resize(film, (32, 32), interpolation=cv2.INTER_AREA).ravel()
        for film in (shown.film, draw(3, 1, pneumonia=True).film)
    )
    assert shown.film.shape == (size_px, size_px) and shown.mask.any()
    assert np.corrcoef(small, reference)[0, 1] > alike


def test_lungs_are_darker_than_the_heart_and_air_is_darkest():
    for seed in range(10):
        film = draw(seed, 1, pneumonia=False, size_px=100).film.astype(float)
        air, lungs, heart = film[:3, :8].mean(), film[45:60, 20:32].mean(), film[55:65, 47:55].mean()
        assert air + 10 < lungs < heart - 40


def test_films_of_one_patient_resemble_each_other_more_than_those_of_others():
    films = np.array(
        [[draw(p, k, pneumonia=False, size_px=SIZE).film.ravel() for k in (1, 2)] for p in range(12)]
    )
    correlation = np.corrcoef(films.reshape(24, -1)).reshape(12, 2, 12, 2)
    same = correlation[range(12), 0, range(12), 1]
    others = correlation[:, 0, :, 1][~np.eye(12, dtype=bool)]
    assert same.mean() > others.mean() + 0.01
    assert same.max() < 0.9999


def test_only_pneumonia_has_a_mask():
    for seed in range(20):
        normal, sick = pair(seed)
        assert not normal.mask.any() and normal.label == 0
        assert 0.01 < sick.mask.mean() < 0.2 and sick.label == 1


def test_opacities_are_one_to_three_and_12_to_28_percent_of_the_film_across():
    widths = []
    for seed in range(60):
        mask = draw(seed, 1, pneumonia=True, size_px=128).mask
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        areas = [area for area in stats[1:, cv2.CC_STAT_AREA] if area > 8]
        assert 1 <= len(areas) <= 3
        if len(areas) == 1:
            widths.append(2 * np.sqrt(areas[0] / np.pi) / 128)
    low, high = np.percentile(widths, (5, 95))
    assert 0.12 < low < high < 0.32


def test_masks_lie_in_the_lungs():
    for seed in range(30):
        normal, sick = pair(seed)
        middle = np.median(normal.film[SIZE // 5 : 3 * SIZE // 5, SIZE // 2 - 3 : SIZE // 2 + 2])
        assert np.mean(normal.film[sick.mask] < middle) > 0.98
        rows, columns = np.nonzero(sick.mask)
        assert rows.min() > 0.1 * SIZE and rows.max() < 0.85 * SIZE
        assert columns.min() > 0.05 * SIZE and columns.max() < 0.95 * SIZE


def test_opacities_brighten_the_film_in_the_mask_and_leave_the_rest_alone():
    for seed in range(30):
        normal, sick = pair(seed, 256)
        gain = sick.film.astype(int) - normal.film
        assert gain.min() >= 0
        assert gain[sick.mask].mean() > 15
        near = cv2.dilate(sick.mask.astype(np.uint8), np.ones((37, 37), np.uint8)).astype(bool)  # 7 % of 256
        assert not gain[~near].any()


def test_mean_brightness_alone_is_a_poor_classifier():
    plan = [film for film in sample_plan(240) if not film.copy_of]
    brightness = [redrawn(film, 32).film.mean() for film in plan]
    auc = roc_auc_score([film.pneumonia for film in plan], brightness)
    assert max(auc, 1 - auc) < 0.8


@pytest.mark.parametrize("films", [30, 61, 560])
def test_a_plan_has_the_wanted_films_about_one_normal_to_three_with_pneumonia(films):
    plan = sample_plan(films)
    assert len(plan) == films == len({film.path for film in plan})
    assert plan == sample_plan(films) != sample_plan(films, seed=8)
    normal = sum(film.label == "NORMAL" for film in plan) / films
    assert 0.15 < normal < 0.4
    patients = Counter(film.patient for film in plan if not film.copy_of)
    assert set(patients.values()) <= {1, 2, 3, 4}
    assert 1.5 < np.mean(list(patients.values())) < 2.7


def test_films_of_a_patient_share_label_and_anatomy():
    plan = sample_plan(200)
    for key in ("label", "patient_seed", "pneumonia"):
        assert len({(film.patient, getattr(film, key)) for film in plan}) == len(
            {film.patient for film in plan}
        )


def test_planted_copies_are_near_duplicates_and_two_are_under_another_name(sample):
    plan = sample_plan(60)
    originals = {film.path: film for film in plan if not film.copy_of}
    copies = [film for film in plan if film.copy_of]
    assert len(copies) == 9
    exact = 0
    for film in copies:
        source = originals[film.copy_of]
        assert film.label == source.label
        first, second = (
            cv2.imread(str(sample / path), cv2.IMREAD_GRAYSCALE) for path in (film.path, source.path)
        )
        assert np.abs(first.astype(int) - second).mean() < 5
        assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99
        exact += (sample / film.path).read_bytes() == (sample / source.path).read_bytes()
    assert exact == 1
    assert sum(film.patient != originals[film.copy_of].patient for film in copies) == 2


def test_the_table_lists_exactly_the_files(sample):
    with (sample / "films.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["path", "label", "patient", "split", "sha256"]
    assert all(sha256_file(sample / row["path"]) == row["sha256"] for row in rows)
    assert {row["path"] for row in rows} == set(stored_files(sample)) - {"films.csv"}
    planned = {film.path: film for film in sample_plan(60)}
    for row in rows:
        film = planned[row["path"]]
        assert (row["label"], row["patient"], row["split"]) == (film.label, film.patient, "")
        assert row["path"] == f"films/{film.label}/{Path(film.path).name}"
        assert Path(film.path).name.startswith(f"{film.patient}_")


def test_a_stored_film_can_be_redrawn_from_its_plan(sample):
    for film in sample_plan(60)[::7]:
        stored = cv2.imread(str(sample / film.path), cv2.IMREAD_UNCHANGED)
        assert stored.ndim == 2 and stored.shape == (SIZE, SIZE)
        assert np.abs(stored.astype(int) - redrawn(film).film).mean() < 3


def test_writing_again_repairs_a_cut_off_run_and_leaves_the_same_bytes(sample, tmp_path):
    options = {"films": 30, "size_px": 32, "class_names": ("CLEAR", "FOUND")}
    write_sample(tmp_path, **options)
    before = stored_files(tmp_path)
    assert {Path(name).parts[1] for name in before if name != "films.csv"} == {"CLEAR", "FOUND"}
    (tmp_path / "films.csv").unlink()
    next((tmp_path / "films" / "FOUND").iterdir()).unlink()
    left_behind = tmp_path / "films" / "FOUND" / ".patient0001_1.0a1b2c3d.jpeg"
    left_behind.write_bytes(b"part")
    write_sample(tmp_path, **options)
    left_behind.unlink()
    assert stored_files(tmp_path) == before


def test_a_folder_with_other_films_is_refused_untouched(tmp_path):
    other = tmp_path / "films" / "NORMAL" / "own.jpeg"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"own\.jpeg"):
        write_sample(tmp_path, films=30, size_px=32)
    assert stored_files(tmp_path) == {"films/NORMAL/own.jpeg": b"mine"}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: draw(-1, 1, pneumonia=True), "-1"),
        (lambda: draw(1, 1, pneumonia=True, size_px=31), "31"),
        (lambda: sample_plan(29), "29"),
        (lambda: sample_plan(60, seed=-2), "-2"),
        (lambda: sample_plan(60, class_names=("A", "A")), "two different names"),
    ],
)
def test_unusable_arguments_are_named(call, named):
    with pytest.raises(BadInput, match=named):
        call()
