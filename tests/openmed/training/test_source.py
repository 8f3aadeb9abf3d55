import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from imblearn.over_sampling import SMOTE

from openmed.training.settings import Augmentation
from openmed.training.source import FeatureSource, Films, FilmSource

SMALL_DISK = """
import pathlib, sys
from openmed.training.source import FeatureSource
from tests.openmed.training.conftest import build_model, make_films
try:
    FeatureSource.of(build_model("resnet50"), make_films(24), pathlib.Path(sys.argv[1]), 4)
except OSError as error:
    print(error)
"""


@pytest.fixture
def uneven(films):
    """Nine films in eleven rows, two of them twice, of classes 7 and 4."""
    rows = np.array([0, 2, 4, 6, 8, 8, 10, 1, 3, 5, 5])
    return Films(films().pixels, rows, (rows % 2).astype(np.int64))


@pytest.mark.parametrize("architecture", ["resnet50", "vit", "inceptionv3"])
def test_the_classifier_on_pooled_features_is_the_network(make_model, architecture):
    from openmed.models.factory import ModelFactory

    small = architecture != "inceptionv3"
    model = make_model(architecture) if small else ModelFactory.create(architecture, image_size_px=75)
    size = model.spec.image_size_px
    x = model.eval().prepare(torch.randint(0, 256, (3, size, size), dtype=torch.uint8))
    assert torch.allclose(model.classifier()(model.pooled(model.features(x))), model(x), atol=1e-5)


def test_features_that_a_full_disk_cannot_hold_are_an_error_that_says_so(tmp_path):
    space = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*space, "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    mounted = 'mount -t tmpfs -o size=4k none "$1" && exec "$2" -c "$3" "$1"'
    command = [*space, "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, SMALL_DISK]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "No space left on device" in done.stdout, done.stderr


def test_features_are_those_of_the_row_s_film_and_each_film_is_seen_once(make_model, uneven, tmp_path):
    model, seen = make_model("resnet50"), []
    model.network.register_forward_hook(lambda *_: seen.append(1))
    normal = model.features
    model.features = lambda x: seen.append(len(x)) or normal(x)
    source = FeatureSource.of(model, uneven, tmp_path / "state", 4)
    assert seen == [4, 4, 1]
    model.eval()
    for part, got in zip(
        [np.arange(11), np.array([9, 4])], source.stream([np.arange(11), np.array([9, 4])]), strict=True
    ):
        expected = model.pooled(normal(model.prepare(uneven.pixels[uneven.rows[part]])))
        assert torch.allclose(got, expected, atol=1e-5)
    assert list((tmp_path / "state").iterdir()) == []


def test_features_are_taken_with_the_frozen_statistics_and_leave_them_alone(
    make_model, uneven, tmp_path, weights, assert_same
):
    model = make_model("resnet50").train()
    before = weights(model)
    FeatureSource.of(model, uneven, tmp_path, 4)
    assert_same(before, weights(model))
    assert model.network.bn1.training


def test_smote_balances_features_of_real_films_each_taken_once(make_model, uneven, tmp_path):
    rows = np.concatenate([uneven.rows, np.arange(11, 40, 2)])
    many = Films(uneven.pixels, rows, (rows % 2).astype(np.int64))
    source = FeatureSource.of(make_model("vit"), many, tmp_path, 8).oversampled(3)
    assert np.bincount(source.labels).tolist() == [18, 18]
    real = FeatureSource.of(make_model("vit"), many, tmp_path, 8)
    _, first = np.unique(many.rows, return_index=True)
    (features,) = real.stream([first])
    expected, labels = SMOTE(random_state=3, k_neighbors=5).fit_resample(features.numpy(), many.labels[first])
    (got,) = source.stream([np.arange(36)])
    assert np.allclose(got.numpy(), expected) and np.array_equal(source.labels, labels)


def test_films_come_in_the_asked_order_each_part_whole(make_model, uneven):
    source = FilmSource(make_model("vit"), uneven, Augmentation())
    parts = [np.array([3, 0, 10]), np.array([5]), np.array([4, 1])]
    got = list(source.stream(parts))
    assert [
        torch.equal(a, torch.from_numpy(uneven.pixels[uneven.rows[b]]))
        for a, b in zip(got, parts, strict=True)
    ]
    assert list(source.stream([])) == []


def test_a_reader_that_fails_ends_the_training_and_not_the_reading_alone(make_model, uneven):
    source = FilmSource(
        make_model("vit"), Films(uneven.pixels[:3], uneven.rows, uneven.labels), Augmentation()
    )
    with pytest.raises(IndexError):
        list(source.stream([np.arange(11)]))
