import cv2
import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import wilcoxon
from sklearn.metrics import auc

from openmed.explain.faithfulness import deletion_drop, perturbation_curves
from openmed.models.base import BaseModel
from openmed.models.factory import ModelFactory

SIZE = 32


class BrightSpotReader(BaseModel):
    """A model whose evidence is known: the brightness of one place, twelve pixels a side."""

    @classmethod
    def explanation_layer(cls, network, image_size_px):
        return "layer4"

    def blocks(self):
        return [self.network]

    def depths(self):
        return [self.network]

    def forward(self, x):
        spot = (x * self._std + self._mean)[:, 0, 2:14, 16:28].mean(dim=(1, 2))
        evidence = 20 * (spot - 0.6)
        return (evidence[:, None] * spot.new_tensor([[-0.5, 0.5]])).float()


@pytest.fixture
def reader():
    plain = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=SIZE)
    return BrightSpotReader(plain.spec, plain.network)


def bright_films(count):
    films = np.random.default_rng(3).integers(20, 60, (count, SIZE, SIZE), dtype=np.uint8)
    films[:, 2:14, 16:28] = np.random.default_rng(4).integers(210, 250, (count, 12, 12))
    return films


def heat_at(rows, columns, count):
    heat = np.zeros((count, SIZE, SIZE), np.float32)
    heat[:, rows, columns] = 1
    return heat


def test_a_map_of_the_real_evidence_is_trusted(reader):
    result = deletion_drop(reader, bright_films(20), heat_at(slice(2, 14), slice(16, 28), 20), 1, share=0.15)
    assert result.trusted
    assert result.map_drop > result.random_drop + 0.2
    assert result.films == 20
    assert result.p_value < 0.01


def test_a_map_of_something_else_is_not_trusted(reader):
    result = deletion_drop(reader, bright_films(20), heat_at(slice(20, 32), slice(0, 12), 20), 1, share=0.15)
    assert not result.trusted
    assert result.map_drop < 0.01
    assert "costs no" in result.reason


def test_a_flat_map_is_not_trusted(reader):
    assert not deletion_drop(reader, bright_films(20), np.zeros((20, 7, 7)), 1).trusted


def test_a_map_that_changes_nothing_is_not_trusted(reader):
    films = np.full((10, SIZE, SIZE), 128, np.uint8)
    result = deletion_drop(reader, films, np.random.default_rng(0).random((10, 7, 7)), 1)
    assert (result.map_drop, result.random_drop, result.trusted) == (0, 0, False)
    assert np.isnan(result.p_value)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_fewer_than_eight_films_are_never_enough(reader, count):
    heat = heat_at(slice(2, 14), slice(16, 28), count)
    result = deletion_drop(reader, bright_films(count), heat, 1, share=0.15)
    assert not result.trusted
    assert result.films == count
    assert "too few" in result.reason


def test_eight_films_can_be_enough(reader):
    assert deletion_drop(
        reader, bright_films(8), heat_at(slice(2, 14), slice(16, 28), 8), 1, share=0.15
    ).trusted


def test_the_falls_are_those_of_a_film_by_film_loop(reader):
    """The map's grid has 8 cells of 4 pixels, so the mask can be built by hand."""
    films = bright_films(9)
    heat = np.random.default_rng(5).random((9, 8, 8))
    falls = []
    for film, one in zip(films, heat, strict=True):
        hottest = one >= np.sort(one.ravel())[-13]  # 20 % of 64 cells
        hidden = np.kron(hottest, np.ones((4, 4))) > 0
        changed = np.where(hidden, cv2.GaussianBlur(film, (0, 0), SIZE / 8), film)
        falls.append(logit(reader.predict(film[None])[0, 1]) - logit(reader.predict(changed[None])[0, 1]))
    result = deletion_drop(reader, films, heat, 1, share=0.2)
    assert result.map_drop == pytest.approx(np.mean(falls), abs=1e-4)


def test_the_control_hides_as_many_pixels_in_the_same_shape(reader, monkeypatch):
    films = bright_films(8)
    seen = []
    predict = reader.predict
    monkeypatch.setattr(reader, "predict", lambda batch: seen.append(batch.copy()) or predict(batch))
    deletion_drop(reader, films, np.random.default_rng(5).random((8, 8, 8)), 1, places=3)
    assert len(seen) == 2 + 3
    whole, hidden = seen[0], seen[-1]
    blurred = np.stack([cv2.GaussianBlur(film, (0, 0), SIZE / 8) for film in whole])
    for batch in seen[1:]:
        assert ((batch == whole) | (batch == blurred)).all()
    mask = hidden != whole
    for batch in seen[1:-1]:
        # A few pixels equal their blurred value by chance.
        assert np.abs((batch != whole).sum(axis=(1, 2)) - mask.sum(axis=(1, 2))).max() < 60


def test_the_same_seed_gives_the_same_result(reader):
    films, heat = bright_films(12), np.random.default_rng(6).random((12, 7, 7))
    first = deletion_drop(reader, films, heat, 1, seed=3)
    assert deletion_drop(reader, films, heat, 1, seed=3) == first
    assert deletion_drop(reader, films, heat, 1, seed=4).random_drop != first.random_drop


def test_the_p_value_is_the_paired_wilcoxon_test(reader, monkeypatch):
    films, heat = bright_films(12), np.random.default_rng(6).random((12, 7, 7))
    taken = []
    predict = reader.predict

    def keep(batch):
        taken.append(predict(batch)[:, 1].astype(np.float64))
        return predict(batch)

    monkeypatch.setattr(reader, "predict", keep)
    result = deletion_drop(reader, films, heat, 1, places=2)
    whole, one, two, by_map = map(logit, taken)
    expected = wilcoxon(whole - by_map, whole - (one + two) / 2, alternative="greater").pvalue
    assert result.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(reader, share):
    with pytest.raises(ValueError, match="share"):
        deletion_drop(reader, bright_films(8), np.zeros((8, 7, 7)), 1, share=share)


def test_films_without_their_maps_are_refused(reader):
    with pytest.raises(ValueError, match="as many maps"):
        deletion_drop(reader, bright_films(8), np.zeros((7, 7, 7)), 1)


def test_a_real_model_can_be_judged(resnet, films):
    result = deletion_drop(resnet, np.concatenate([films, films]), np.zeros((10, 4, 4)), 0)
    assert -1 <= result.map_drop <= 1


def test_hiding_and_showing_the_real_evidence_first_beats_chance(reader):
    curves = perturbation_curves(reader, bright_films(20), heat_at(slice(2, 14), slice(16, 28), 20), 1)
    assert (curves.area(curves.deletion) < curves.area(curves.random_deletion)).mean() > 0.9
    assert (curves.area(curves.insertion) > curves.area(curves.random_insertion)).mean() > 0.9


def test_hiding_and_showing_something_else_first_is_worse_than_chance(reader):
    """A map that is hot everywhere but at the evidence: its deletion keeps the class to the end."""
    heat = 1 - heat_at(slice(2, 14), slice(16, 28), 20)
    curves = perturbation_curves(reader, bright_films(20), heat, 1)
    assert (curves.area(curves.deletion) > curves.area(curves.random_deletion)).mean() > 0.9
    assert (curves.area(curves.insertion) < curves.area(curves.random_insertion)).mean() > 0.9


def test_the_curves_are_those_of_a_film_by_film_loop(reader):
    films = bright_films(3)
    heat = np.random.default_rng(5).random((3, 8, 8))
    curves = perturbation_curves(reader, films, heat, 1, steps=4)
    np.testing.assert_array_equal(curves.shares, [0, 0.25, 0.5, 0.75, 1])
    for index, (film, one) in enumerate(zip(films, heat, strict=True)):
        smooth = cv2.GaussianBlur(film, (0, 0), SIZE / 8)
        for step, cells in enumerate([0, 16, 32, 48, 64]):
            hot = np.kron(one >= np.sort(one.ravel())[::-1][cells - 1], np.ones((4, 4))) > 0
            hot &= cells > 0
            hidden, shown = np.where(hot, smooth, film), np.where(hot, film, smooth)
            for curve, changed in ((curves.deletion, hidden), (curves.insertion, shown)):
                expected = logit(reader.predict(changed[None])[0, 1])
                assert curve[index, step] == pytest.approx(expected, abs=1e-4)


def test_map_and_control_begin_and_end_alike(reader):
    films = bright_films(8)
    curves = perturbation_curves(reader, films, np.random.default_rng(5).random((8, 7, 7)), 1)
    whole = logit(reader.predict(films)[:, 1].astype(float))
    for curve in (curves.deletion, curves.random_deletion):
        np.testing.assert_allclose(curve[:, 0], whole, atol=1e-9)
        np.testing.assert_array_equal(curve[:, -1], curves.insertion[:, 0])
    for curve in (curves.insertion, curves.random_insertion):
        np.testing.assert_allclose(curve[:, -1], whole, atol=1e-9)
        np.testing.assert_array_equal(curve[:, 0], curves.deletion[:, -1])


def test_the_area_is_that_of_scikit_learn(reader):
    curves = perturbation_curves(reader, bright_films(4), np.random.default_rng(5).random((4, 7, 7)), 1)
    expected = [auc(curves.shares, one) for one in curves.insertion]
    np.testing.assert_allclose(curves.area(curves.insertion), expected)


def test_the_same_seed_gives_the_same_curves(reader):
    films, heat = bright_films(4), np.random.default_rng(6).random((4, 7, 7))
    first, again, other = (perturbation_curves(reader, films, heat, 1, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.random_deletion, again.random_deletion)
    assert (first.random_deletion != other.random_deletion).any()


def test_curves_of_films_without_their_maps_are_refused(reader):
    with pytest.raises(ValueError, match="as many maps"):
        perturbation_curves(reader, bright_films(8), np.zeros((7, 7, 7)), 1)
