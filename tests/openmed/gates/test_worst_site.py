import numpy as np
import pytest
from scipy.stats import binomtest

from openmed.gates.worst_site import worst_site
from openmed.metrics.clustered import operating_shares
from openmed.metrics.resampling import cohort, multiplicities


@pytest.fixture
def films():
    rng, n = np.random.default_rng(0), 200
    labels = np.repeat([0, 1], n // 2)
    scores = np.clip(labels * 0.3 + rng.uniform(0, 0.7, n), 0, 1)
    return labels, scores, np.repeat(np.arange(n // 2), 2)


def test_of_one_site_it_is_the_wider_of_its_own_interval_and_a_bootstrap_of_the_same_rows(films):
    labels, scores, patients = films
    flagged = scores >= 0.4
    own = operating_shares(labels == 1, flagged, patients)
    group = cohort(labels, patients)
    drawn = np.concatenate(list(multiplicities(group, 500, 3)))[:, group.patient_of_film]
    found = worst_site(labels, [flagged], patients, replicates=500, seed=3)
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        where = labels == side
        right = (flagged == side)[where]
        low, high = np.quantile([np.average(right, weights=row[where]) for row in drawn], [0.025, 0.975])
        worst = found[name]
        assert (worst.site, worst.interval.value) == (0, own[name].value)
        assert worst.interval.low == pytest.approx(min(low, own[name].low), abs=1e-12)
        assert worst.interval.high == pytest.approx(max(high, own[name].high), abs=1e-12)


def test_each_share_names_its_own_worst_site(films):
    labels, scores, patients = films
    flagged = [scores >= 0.4, scores >= 0.1, scores >= 0.7]
    found = worst_site(labels, flagged, patients, replicates=200, seed=0)
    assert found["sensitivity"].site == 2 and found["specificity"].site == 1
    assert found["sensitivity"].interval.value == pytest.approx((scores[labels == 1] >= 0.7).mean())
    assert found["specificity"].interval.value == pytest.approx((scores[labels == 0] < 0.1).mean())


def test_the_worst_of_many_equal_sites_is_sought_anew_in_each_resample(films):
    labels, _, patients = films
    rng = np.random.default_rng(1)
    flagged = [(labels == 1) ^ (rng.uniform(size=200) < 0.1) for _ in range(12)]
    found = worst_site(labels, flagged, patients, replicates=500, seed=0)["sensitivity"].interval
    alone = [worst_site(labels, [row], patients, replicates=500, seed=0)["sensitivity"] for row in flagged]
    assert found.value == min(one.interval.value for one in alone)
    assert found.low <= min(one.interval.low for one in alone)


def test_no_error_at_all_still_leaves_wilsons_interval():
    labels = np.repeat([0, 1], 8)
    found = worst_site(labels, [labels == 1] * 3, np.arange(16), replicates=200, seed=0)
    expected = binomtest(8, 8).proportion_ci(method="wilson")
    assert found["specificity"].interval.low == pytest.approx(expected.low)


def test_without_films_of_a_class_its_share_is_unknown():
    found = worst_site(np.ones(4, int), [np.ones(4, bool)], np.arange(4), replicates=50, seed=0)
    assert np.isnan(found["specificity"].interval.value) and found["sensitivity"].interval.value == 1


def test_flags_that_do_not_fit_the_films_are_refused():
    with pytest.raises(ValueError, match="flagged must be"):
        worst_site([0, 1], [[True]], [0, 1], seed=0)
