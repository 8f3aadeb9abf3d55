"""The perceptual hash and the likeness: a changed copy is known again, another film is not taken for it."""

import io
import itertools
import zipfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from openmed.dataset.duplicates import near_duplicates, same_film
from openmed.files import sha256_bytes
from openmed.films.images import decode_film
from openmed.measurement.perceptual import LEAST_LIKENESS, likeness, low_frequencies, perceptual_hash
from openmed.phantoms.phantom import draw

REAL = Path(__file__).parents[4] / "shared/data"
BITS = 44
EQUAL_FILMS = """
NORMAL2-IM-0587-0001-0001 NORMAL2-IM-0587-0001-0002
person1159_virus_1944 person1159_virus_1945
person1261_virus_2147 person1261_virus_2148
person124_virus_246 person124_virus_247
person1312_bacteria_3317 person1312_bacteria_3318
person1343_bacteria_3413 person1343_bacteria_3414
person1349_bacteria_3436 person1349_bacteria_3437
person1372_bacteria_3501 person1372_bacteria_3502 person1372_bacteria_3503
person1430_bacteria_3695 person1430_bacteria_3696
person1481_bacteria_3862 person1481_bacteria_3863
person1481_bacteria_3864 person1481_bacteria_3865
person1481_bacteria_3866 person1481_bacteria_3867
person1496_bacteria_3909 person1496_bacteria_3910
person1619_bacteria_4267 person1619_bacteria_4268
person1628_bacteria_4297 person1628_bacteria_4298
person162_virus_321 person162_virus_322
person258_bacteria_1207 person258_bacteria_1208 person258_bacteria_1209
person264_bacteria_1230 person264_bacteria_1231
person266_bacteria_1237 person266_bacteria_1238
person30_bacteria_156 person30_bacteria_157
person357_virus_734 person357_virus_735
person401_virus_797 person401_virus_798
person688_virus_1281 person688_virus_1282
person834_bacteria_2747 person834_bacteria_2748
"""
"""Which of the 5,216 published training films show the same: looked at, and equal byte for byte."""


def jpeg(film, quality):
    return cv2.imdecode(cv2.imencode(".jpeg", film, (cv2.IMWRITE_JPEG_QUALITY, quality))[1], 0)


def cut(film, share):
    y, x = (round(side * share) for side in film.shape)
    return film[y : film.shape[0] - y, x : film.shape[1] - x]


def turned(film, degrees):
    height, width = film.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(film, turn, (width, height))


def equalised(film, limit):
    return cv2.createCLAHE(limit, (8, 8)).apply(film)


GREYS = np.arange(256, dtype=np.uint8)
CHANGES = {
    "cut by 2 % at each border": lambda film: cut(film, 0.02),
    "cut by 2 % at two borders": lambda film: film[film.shape[0] // 50 :, film.shape[1] // 50 :],
    "turned to the left": lambda film: turned(film, 2),
    "turned to the right": lambda film: turned(film, -2),
    "equalised locally": lambda film: equalised(film, 2),
    "equalised locally and strongly": lambda film: equalised(film, 4),
    "compressed": lambda film: jpeg(film, 50),
    "half the size": lambda film: cv2.resize(film, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "brighter": lambda film: cv2.add(film, np.full_like(film, 20)),
    "windowed": lambda film: cv2.LUT(film, (GREYS * 0.6 + 50).astype(np.uint8)),
    "gamma": lambda film: cv2.LUT(film, (255 * (GREYS / 255) ** 0.7).round().astype(np.uint8)),
}


@pytest.fixture(scope="module")
def films():
    return [draw(number, 1, pneumonia=bool(number % 2), size_px=256).film for number in range(8)]


def distance(first, second):
    return apart(perceptual_hash(first), perceptual_hash(second))


def apart(first, second):
    return (int(first, 16) ^ int(second, 16)).bit_count()


def contrast(film, side, sigma):
    small = cv2.resize(film, (side, side), interpolation=cv2.INTER_AREA).astype(np.float64)
    detail = small - gaussian_filter(small, sigma, mode="mirror", truncate=4)
    return detail / np.sqrt(gaussian_filter(detail**2, sigma, mode="mirror", truncate=4) + 25)


def test_the_hash_is_the_signs_of_the_lowest_frequencies_of_an_independent_transform(films):
    fade = np.sin(np.minimum(np.minimum(np.arange(64) + 0.5, 63.5 - np.arange(64)) / 16, 1) * np.pi / 2) ** 2
    order = sorted((row + column, column, row) for row in range(64) for column in range(64))[1:257]
    for film in films:
        transform = dctn(contrast(film, 64, 4) * np.outer(fade, fade), norm="ortho")
        expected = [transform[row, column] for _, column, row in order]
        np.testing.assert_allclose(low_frequencies(film), expected, atol=0.02)
        bits = "".join(str(int(value > 0)) for value in low_frequencies(film))
        assert perceptual_hash(film) == f"{int(bits, 2):064x}"


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_the_same_film(films, change):
    copies = [CHANGES[change](film) for film in films]
    assert max(distance(*pair) for pair in zip(films, copies, strict=True)) <= BITS
    assert min(likeness(*pair) for pair in zip(films, copies, strict=True)) > LEAST_LIKENESS + 0.02


def test_films_of_other_patients_are_other_films(films):
    alike = [likeness(a, b) for a, b in itertools.combinations(films, 2)]
    assert max(alike) < LEAST_LIKENESS


def test_the_likeness_of_films_as_they_lie_is_the_correlation_of_their_finest_detail(films):
    for film in films:
        copy = jpeg(film, 30)
        expected = np.corrcoef(contrast(film, 128, 1.5).ravel(), contrast(copy, 128, 1.5).ravel())[0, 1]
        assert likeness(film, copy) == pytest.approx(expected, abs=0.01)
        assert likeness(copy, film) == pytest.approx(likeness(film, copy), abs=0.01)


def test_films_without_detail_are_not_taken_for_one_film(films):
    flat = np.full((64, 64), 9, np.uint8)
    assert likeness(flat, np.full((64, 64), 90, np.uint8)) == 0
    assert likeness(flat, films[0]) == 0


def test_an_inverted_film_is_another_film(films):
    assert distance(films[0], 255 - films[0]) > 250
    assert likeness(films[0], 255 - films[0]) < 0


def published(name):
    """Films of a published set by their file names without suffix."""
    with zipfile.ZipFile(REAL / name) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpeg"))
        return {Path(name).stem: archive.read(name) for name in names}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real films are not beside this checkout")
def test_copies_of_real_films_are_found_and_confirmed():
    films = [decode_film(content) for content in published("chest_xray_fullres_sample.zip").values()]
    hashes, recalls = [perceptual_hash(film) for film in films], {}
    for change, made in CHANGES.items():
        copies = [made(film) for film in films]
        recalls[change] = np.mean(
            [
                apart(digest, perceptual_hash(copy)) <= BITS and likeness(film, copy) >= LEAST_LIKENESS
                for digest, film, copy in zip(hashes, films, copies, strict=True)
            ]
        )
    assert len(films) == 140
    assert min(recalls.values()) >= 0.98, recalls


@pytest.mark.skipif(not REAL.is_dir(), reason="the real films are not beside this checkout")
def test_among_real_films_exactly_those_listed_by_hand_are_joined(tmp_path):
    contents = published("chest_xray_train_224.zip")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    films = pd.DataFrame({"path": list(contents)})
    films["sha256"] = [sha256_bytes(content) for content in contents.values()]
    pairs = near_duplicates([perceptual_hash(decode_film(c)) for c in contents.values()], BITS)
    joined = defaultdict(set)
    for i, j in pairs[same_film(tmp_path, films, pairs)]:
        joined[films["path"][i]] |= {films["path"][i], films["path"][j]}
    listed = [set(line.split()) for line in io.StringIO(EQUAL_FILMS.strip())]
    assert sorted(map(sorted, joined.values())) == sorted(map(sorted, listed))
    assert 60 <= len(pairs) <= 150  # few others had to be looked at
