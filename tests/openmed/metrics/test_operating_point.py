import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmed.errors import BadInput
from openmed.metrics.classification import sensitivity
from openmed.metrics.operating_point import choose_threshold

films = st.lists(
    st.tuples(st.integers(0, 1), st.floats(0, 1, width=32) | st.sampled_from([0.2, 0.5])), min_size=1
).filter(lambda rows: any(label for label, _ in rows))


@settings(deadline=None)
@given(films, st.floats(0.01, 1))
def test_it_is_the_highest_threshold_that_reaches_the_target(rows, target):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    threshold = choose_threshold(labels, scores, target)
    assert 0 <= threshold <= 1
    assert sensitivity(labels, scores, threshold) >= target
    # Brute force: every distinct score as a threshold; the best one flags exactly the same films.
    reaching = [score for score in scores if sensitivity(labels, scores, score) >= target]
    assert np.array_equal(scores >= threshold, scores >= max(reaching))


@settings(deadline=None)
@given(films, st.floats(0.01, 1))
def test_scores_kept_in_32_bits_are_flagged_alike(rows, target):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(np.float32)
    threshold = choose_threshold(labels, scores, target)
    assert np.array_equal(scores >= np.float32(threshold), scores.astype(float) >= threshold)


def test_it_lies_half_way_to_the_next_lower_score():
    assert choose_threshold([1, 1, 0], [0.75, 0.5, 0.25], 1.0) == 0.375
    assert choose_threshold([1, 1, 0], [0.75, 0.5, 0.25], 0.5) == 0.625
    assert choose_threshold([1, 0], [0.5, 0.75], 1.0) == 0.25


def test_a_share_that_floating_point_overshoots_asks_for_no_extra_film():
    # 0.07 * 100 is 7.000000000000001
    threshold = choose_threshold(np.ones(100, int), np.arange(100) / 100, 0.07)
    assert 0.92 < threshold <= 0.93


def test_neighbouring_scores_are_kept_apart():
    lower = 0.5
    upper = math.nextafter(lower, 1)
    assert choose_threshold([0, 1], [lower, upper], 1.0) == upper


def test_all_scores_zero_flags_everything():
    assert choose_threshold([1, 0], [0.0, 0.0], 0.95) == 0.0


def test_without_the_finding_no_threshold_can_be_chosen():
    with pytest.raises(BadInput, match="none of the 2 calibration films has the finding"):
        choose_threshold([0, 0], [0.2, 0.4], 0.95)


@pytest.mark.parametrize("target", [0, 1.1, 95, math.nan])
def test_an_impossible_target_is_refused(target):
    with pytest.raises(BadInput, match="target_sensitivity must be above 0 and at most 1"):
        choose_threshold([0, 1], [0.2, 0.4], target)


def test_missing_scores_are_refused():
    with pytest.raises(ValueError, match="found nan"):
        choose_threshold([0, 1], [0.2, math.nan], 0.95)
