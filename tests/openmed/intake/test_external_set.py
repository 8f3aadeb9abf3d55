"""External sets: nothing that names somebody comes in, and nothing that was learnt from."""

import csv
from pathlib import PurePosixPath

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.archives import read_stored
from openmed.errors import BadInput
from openmed.files import sha256_bytes, sha256_file
from openmed.films.images import read_film
from openmed.intake.external_set import films_in_training, import_set, read_set
from openmed.measurement.perceptual import perceptual_hash
from openmed.phantoms.phantom import draw
from tests.elsewhere import CLASSES, SECRET, write_list

ALIASES = {"Clear lungs": "NORMAL", "Lung Opacity": "PNEUMONIA"}


def add(source, target, **more):
    return import_set(source, target, class_names=CLASSES, pseudonyms=SECRET, **more)


def test_a_list_comes_in_with_what_is_known_of_its_films_and_no_name(tmp_path):
    source = write_list(tmp_path / "source")
    summary = add(source, tmp_path / "set", aliases=ALIASES, second_label="Reader")
    assert (summary.films, summary.patients, summary.second_labels) == (48, 24, 48)
    assert summary.classes == {"NORMAL": 24, "PNEUMONIA": 24}
    assert summary.views == {"AP": 24, "PA": 24}
    text = (tmp_path / "set/films.csv").read_text()
    assert "Jane" not in text and "Clear" not in text
    assert [path.name for path in (tmp_path / "set/films").iterdir()] == ["00000.tar"]
    assert b"Jane" not in (tmp_path / "set/films/00000.tar").read_bytes()
    films = read_set(tmp_path / "set", CLASSES)
    assert films["patient"].nunique() == 24
    assert set(films["view"]) == {"AP", "PA"}
    assert (set(films["sex"]), set(films["age_band"]), set(films["source"])) == (
        {"F"},
        {"20-39", "80+"},
        {"elsewhere"},
    )
    assert (films["second_label"] != films["label"]).sum() == 10
    for film in films.itertuples():
        content = read_stored(f"{tmp_path}/set/{film.path}")
        assert sha256_bytes(content) == film.sha256
        assert PurePosixPath(film.path).name.startswith(film.sha256[:16])


def test_free_text_is_not_kept(tmp_path):
    source = write_list(tmp_path / "source", patients=2)
    rows = list(csv.reader(source.open()))
    rows[1][3:] = ["Doe standing", "Jane", "born 1950", "Jane Doe's clinic", "Jane says no"]
    with source.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    add(source, tmp_path / "set", aliases=ALIASES, second_label="reader")
    films = read_set(tmp_path / "set", CLASSES)
    (odd,) = films[films["view"] == "other"].to_dict("records")
    assert (odd["sex"], odd["age_band"], odd["source"]) == ("", "", "")
    assert pd.isna(odd["second_label"])
    assert "Jane" not in (tmp_path / "set/films.csv").read_text()


def test_class_folders_may_have_one_class_and_another_name(tmp_path):
    for number in range(3):
        path = tmp_path / "source/test/Covid" / f"patient{number}_1.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw(6000 + number, 0, pneumonia=True, size_px=48).film)
    summary = add(tmp_path / "source", tmp_path / "set", aliases={"covid": "pneumonia"})
    assert summary.classes == {"NORMAL": 0, "PNEUMONIA": 3}
    assert summary.views == {"unknown": 3}
    films = read_set(tmp_path / "set", CLASSES)
    assert set(films["label"]) == {1}
    assert films["second_label"].isna().all() and (films["view"] == "").all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"aliases": {"Healthy": "WELL"}}, "'WELL' is no class: choose from NORMAL, PNEUMONIA"),
        ({"aliases": {"normal": "PNEUMONIA"}}, "'normal' is the name of a class already"),
        ({"second_label": "nobody"}, "has no column nobody"),
    ],
)
def test_what_means_nothing_is_refused_and_leaves_nothing(tmp_path, more, said):
    source = write_list(tmp_path / "source", patients=2)
    with pytest.raises(BadInput, match=said):
        add(source, tmp_path / "set", **more)
    assert not (tmp_path / "set").exists()


def test_a_folder_has_no_column(tmp_path):
    (tmp_path / "NORMAL").mkdir()
    cv2.imwrite(str(tmp_path / "NORMAL/a.png"), draw(1, 0, pneumonia=False, size_px=48).film)
    with pytest.raises(BadInput, match=r"is no \.csv file, so it has no column reader"):
        add(tmp_path, tmp_path.with_name("set"), second_label="reader")


def test_a_second_label_that_is_no_class_is_refused_when_it_is_read(tmp_path):
    add(write_list(tmp_path / "source", patients=3), tmp_path / "set", aliases=ALIASES, second_label="reader")
    table = tmp_path / "set/films.csv"
    table.write_text(table.read_text().replace(",NORMAL\n", ",WELL\n"))
    with pytest.raises(BadInput, match="a second label other than NORMAL, PNEUMONIA"):
        read_set(tmp_path / "set", CLASSES)


def stored(root, name, film):
    """Writes a film and returns its row."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / name), film)
    return {
        "path": name,
        "sha256": sha256_file(root / name),
        "perceptual_hash": perceptual_hash(read_film(root / name)),
    }


def test_copies_and_near_duplicates_of_training_films_are_found_and_no_other(tmp_path):
    taught = [draw(number, 0, pneumonia=number % 2 == 0, size_px=128).film for number in range(30)]
    training = pd.DataFrame([stored(tmp_path, f"data/{n}.png", film) for n, film in enumerate(taught)])
    brighter = cv2.add(taught[3], np.full_like(taught[3], 9))
    smaller = cv2.resize(taught[4], (96, 96), interpolation=cv2.INTER_AREA)
    away = [
        taught[2],
        brighter,
        smaller,
        *(draw(7000 + n, 0, pneumonia=True, size_px=128).film for n in range(9)),
    ]
    rows = [
        stored(tmp_path, f"external/{n}.{'jpeg' if n == 1 else 'png'}", film) for n, film in enumerate(away)
    ]
    found = films_in_training(pd.DataFrame(rows), training, 12, tmp_path)
    assert found.tolist() == [True, True, True] + [False] * 9


def test_a_like_hash_alone_does_not_make_a_film_known(tmp_path):
    training = pd.DataFrame([stored(tmp_path, "data/a.png", draw(1, 0, pneumonia=False, size_px=128).film)])
    row = stored(tmp_path, "external/b.png", draw(8000, 0, pneumonia=True, size_px=128).film)
    row["perceptual_hash"] = training["perceptual_hash"].iloc[0]
    assert films_in_training(pd.DataFrame([row]), training, 12, tmp_path).tolist() == [False]
