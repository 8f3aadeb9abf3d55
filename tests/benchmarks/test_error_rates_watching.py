"""A small run of `benchmarks/error_rates_watching.py`: what holds a champion, and what does not."""

from benchmarks.error_rates_watching import champion, changed_share, lost_sensitivity


def test_a_share_of_the_finding_that_changes_alone_holds_no_champion():
    watches = [changed_share(seed, 0.5, 0.1, None, watches=4) for seed in range(8)]
    assert [watch.held for watch in watches] == [set()] * 8


def test_a_loss_of_ten_points_of_sensitivity_is_found_within_the_films_of_the_plan():
    found = [lost_sensitivity(seed, 0.5, None, 200, test_films=2000) for seed in range(12)]
    assert sum(films is not None for films in found) >= 11


def test_a_loss_is_found_on_films_that_are_asked_for():
    found = [lost_sensitivity(seed, 0.5, 100, 500, test_films=2000) for seed in range(4)]
    assert sum(films is not None for films in found) >= 3


def test_the_drawn_loss_is_one_of_ten_points():
    import numpy as np

    model = champion(1)
    rng, positives = np.random.default_rng(2), []
    for apart in (model.worse(0.0), model.worse(0.10)):
        films = model.films(rng, 200_000, 1.0, apart)
        positives.append((films["score"] >= model.subject.threshold).mean())
    assert abs(positives[0] - positives[1] - 0.10) < 0.005
