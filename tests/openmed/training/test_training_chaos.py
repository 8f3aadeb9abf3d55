"""Trainings ended by SIGKILL at seeded moments, some of them several times; `make chaos` does 200."""

from tests.openmed.training.chaos import chaos, kill, outcome


def test_trainings_killed_at_twenty_seeded_moments_end_bit_for_bit_as_an_undisturbed_one(tmp_path):
    results = list(chaos(20, seed=5, folder=tmp_path))
    assert sum(hit for _, hit, _ in results) == 20
    assert {architecture for architecture, _, _ in results} == {"vit", "resnet50"}
    assert [same for _, _, same in results] == [True] * len(results)


def test_a_training_that_ends_before_its_kill_was_not_killed(tmp_path):
    assert kill("vit", tmp_path / "ended", reports=1000, delay_s=1.0) is False
    assert outcome("vit", tmp_path / "ended") == outcome("vit", tmp_path / "whole")
