import numpy as np
import pytest
import torch

from openmed.models.pooling import profile


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 5, 4, 4), (3, 2, 56, 56)])
def test_bands_are_those_of_adaptive_pooling_where_they_divide_the_map(shape):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    down = torch.nn.functional.adaptive_avg_pool2d(maps, (4, 1)).flatten(1)
    across = torch.nn.functional.adaptive_avg_pool2d(maps, (1, 4)).flatten(1)
    spread = np.log(maps.numpy().reshape(*shape[:2], -1).std(2) + 1e-3)
    found = profile(maps)
    assert found.shape == (shape[0], 9 * shape[1])
    np.testing.assert_allclose(found, np.concatenate([down, across, spread], 1), atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 35])
def test_bands_of_any_map_share_its_mean(side):
    maps = torch.rand((1, 2, side, side), generator=torch.Generator().manual_seed(side))
    found = profile(maps)[0]
    for start in (0, 8):
        bands = found[start : start + 8].reshape(2, 4)
        np.testing.assert_allclose(bands.mean(1), maps[0].mean((1, 2)), atol=1e-6)


def test_a_cell_on_an_edge_counts_for_both_bands():
    row = torch.tensor([0.0, 0.0, 0.0, 0.0, 6.0, 0.0])[None, None, :, None]
    # Bands of one and a half cells: the fifth lies half in the third band, half in the fourth.
    np.testing.assert_allclose(profile(row)[0, :4], [0, 0, 2, 2], atol=1e-6)
