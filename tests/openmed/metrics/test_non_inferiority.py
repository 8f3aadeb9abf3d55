import json

import pytest
from scipy.stats import binom, norm

from openmed.errors import BadInput
from openmed.metrics.non_inferiority import non_inferiority
from openmed.metrics.paired_proportions import tango


@pytest.mark.parametrize(("discordance", "difference"), [(0.1, 0.0), (0.2, -0.02), (0.05, 0.03)])
def test_the_power_of_non_inferiority_equals_going_through_every_outcome(discordance, difference):
    n, margin = 60, 0.1
    better, worse = (discordance + difference) / 2, (discordance - difference) / 2
    expected = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            chance = binom.pmf(b, n, better) * binom.pmf(c, n - b, worse / (1 - better))
            if chance > 1e-9 and tango(b, c, n).low >= -margin:
                expected += chance
    found = non_inferiority(margin, n, discordance, difference=difference)
    assert found.power == pytest.approx(expected, abs=1e-6)
    again = non_inferiority(margin, n, discordance, difference=found.value_needed)
    assert again.power == pytest.approx(0.8, abs=1e-3)


def test_the_films_needed_for_non_inferiority_are_about_the_published_formula():
    found = non_inferiority(0.05, 100, 0.1)
    formula = ((norm.ppf(0.975) + norm.ppf(0.8)) / 0.05) ** 2 * 0.1
    assert found.films_needed == pytest.approx(formula, rel=0.15)
    assert non_inferiority(0.05, found.films_needed, 0.1).power >= 0.8
    assert non_inferiority(0.05, found.films_needed - 20, 0.1).power < 0.8


def test_models_that_never_disagree_still_need_films():
    few, many = (non_inferiority(0.05, n, 0.0) for n in (50, 100))
    assert (few.power, many.power) == (0, 1)
    assert tango(0, 0, few.films_needed).low >= -0.05 > tango(0, 0, few.films_needed - 1).low


def test_the_sentence_of_non_inferiority_reads_plainly():
    found = non_inferiority(0.05, 390, 0.06)
    assert found.sentence == (
        "With 390 films with the finding, of which the models disagree on 6.0%, a truly equal sensitivity "
        "would be shown to be at most 0.05 worse in 96% of such tests; about 223 films would be enough for 4 "
        "of 5 such tests."
    )
    worse = non_inferiority(0.05, 390, 0.06, difference=-0.06)
    assert worse.films_needed is None
    assert "a truly lower (by 0.060) sensitivity" in worse.sentence
    assert json.loads(json.dumps(worse.to_json(), allow_nan=False)) == worse.to_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 10, 0.1, 0.0), "margin must be between 0 and 1"),
        ((0.1, 0, 0.1, 0.0), "at least one film of each kind, found 0"),
        ((0.1, 10, 0.1, 0.2), "not below the difference, found 0.1 and 0.2"),
        ((0.1, 10, float("nan"), 0.0), "not below the difference, found nan"),
    ],
)
def test_an_impossible_comparison_is_refused(arguments, message):
    *first, difference = arguments
    with pytest.raises(BadInput, match=message):
        non_inferiority(*first, difference=difference)
