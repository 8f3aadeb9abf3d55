"""The embedding: what it keeps of a film, what it takes out, and how long it takes."""

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import measure_films, read_films
from openmed.measurement.embedding import embed_film
from openmed.phantoms.phantom import draw


@pytest.fixture(scope="module")
def film():
    return draw(1, 2, pneumonia=True, size_px=256).film


def test_an_embedding_is_the_standardised_mean_of_each_cell(film):
    cells = film.reshape(8, 32, 8, 32).astype(float).mean(axis=(1, 3)).ravel()
    # The film is sampled at every second pixel.
    assert np.abs(embed_film(film) - (cells - cells.mean()) / cells.std()).max() < 0.1
    small = film[:128, :128]
    exact = small.reshape(8, 16, 8, 16).astype(float).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(embed_film(small), (exact - exact.mean()) / exact.std(), atol=1e-4)


def test_it_is_64_finite_numbers_whatever_the_shape():
    noise = np.random.default_rng(0)
    for shape in ((16, 16), (17, 400), (900, 31), (1500, 2000)):
        found = embed_film(noise.integers(0, 256, shape, dtype=np.uint8))
        assert found.shape == (64,) and found.dtype == np.float32
        assert abs(found.mean()) < 1e-5 and found.std() == pytest.approx(1, abs=1e-4)


def test_a_blank_film_is_all_zeros():
    assert not embed_film(np.full((100, 120), 80, np.uint8)).any()


def test_brightness_and_contrast_are_taken_out(film):
    dim = cv2.convertScaleAbs(film, alpha=0.6, beta=40)
    assert np.abs(embed_film(film) - embed_film(dim)).max() < 0.05


def test_size_and_compression_hardly_change_it_and_turning_does(film):
    large = cv2.resize(film, (1024, 1024), interpolation=cv2.INTER_LINEAR)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], 0)
    for version in (large, jpeg):
        assert np.abs(embed_film(film) - embed_film(version)).max() < 0.1
    assert np.abs(embed_film(film) - embed_film(np.rot90(film).copy())).max() > 1


def test_the_manifest_holds_the_embedding_of_accepted_films(tmp_path, film):
    cv2.imwrite(str(tmp_path / "a.png"), film)
    (tmp_path / "b.png").write_text("no film")
    (tmp_path / "films.csv").write_text("path,label,patient,split\na.png,NORMAL,p,\nb.png,NORMAL,q,\n")
    with FilmStore(tmp_path / "store") as store:
        manifest = measure_films(tmp_path, read_films(tmp_path, ("NORMAL", "PNEUMONIA")), store)
    manifest.to_parquet(tmp_path / "manifest.parquet")
    again = pd.read_parquet(tmp_path / "manifest.parquet")
    np.testing.assert_array_equal(np.stack(again["embedding"].iloc[:1])[0], embed_film(film))
    assert again["embedding"].iloc[1] is None
