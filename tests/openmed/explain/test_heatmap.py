import cv2
import numpy as np
import pytest

from openmed.errors import BadInput
from openmed.explain.attention import gradient_attention, rollout
from openmed.explain.gradcam import grad_cam
from openmed.explain.heatmap import explain, methods


def test_a_cnn_is_explained_by_grad_cam_enlarged_bilinearly(resnet, films):
    maps = explain(resnet, films, 1)
    assert list(maps) == ["grad_cam"]
    small = grad_cam(resnet, resnet.prepare(films), 1)
    expected = np.stack([cv2.resize(one, (64, 64), interpolation=cv2.INTER_LINEAR) for one in small])
    assert maps["grad_cam"].dtype == np.float32
    np.testing.assert_allclose(maps["grad_cam"], expected, atol=1e-5)


def test_a_vit_is_explained_by_gradient_attention_first_and_rollout(vit, films):
    maps = explain(vit, films, 0)
    assert tuple(maps) == methods(vit) == ("gradient_attention", "rollout")
    x = vit.prepare(films)
    for name, small in {
        "gradient_attention": gradient_attention(vit, x, 0),
        "rollout": rollout(vit, x),
    }.items():
        expected = np.stack([cv2.resize(one, (64, 64), interpolation=cv2.INTER_LINEAR) for one in small])
        np.testing.assert_allclose(maps[name], expected, atol=1e-5)
        assert maps[name].min() >= 0
        assert maps[name].max() <= 1


def test_one_method_can_be_asked_for(vit, films):
    assert list(explain(vit, films, 1, method="rollout")) == ["rollout"]


def test_more_films_than_a_batch_keep_their_order(resnet):
    films = np.random.default_rng(0).integers(0, 256, (70, 64, 64), dtype=np.uint8)
    whole = explain(resnet, films, 1)["grad_cam"]
    assert whole.shape == (70, 64, 64)
    np.testing.assert_allclose(explain(resnet, films[30:36], 1)["grad_cam"], whole[30:36], atol=1e-4)


def test_no_films_give_no_maps(resnet):
    assert explain(resnet, np.zeros((0, 64, 64), np.uint8), 1)["grad_cam"].shape == (0, 64, 64)


def test_a_method_of_another_architecture_is_refused(resnet, films):
    with pytest.raises(BadInput, match="choose auto or grad_cam"):
        explain(resnet, films, 1, method="rollout")
