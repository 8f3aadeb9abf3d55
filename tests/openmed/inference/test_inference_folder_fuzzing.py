"""Damaged model folders answer as before or are refused once; what does neither is seen."""

import random

import numpy as np
import pytest

from openmed.inference.checkpoint import EXPORT_FILE, SPEC_FILE, WEIGHTS_FILE, load_model
from tests.openmed.inference import folder_fuzzing
from tests.openmed.inference.folder_damage import FILES, damage, linked, seal


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A model folder, and another of the same architecture; only to be read."""
    root = tmp_path_factory.mktemp("intact")
    for seed in range(2):
        folder_fuzzing.write_folder(root / f"vit-{seed}", "vit", seed)
    return root


@pytest.fixture
def judged(intact, monkeypatch):
    """Says what becomes of the intact folder, loaded otherwise than it should be."""

    def judge(load):
        monkeypatch.setitem(folder_fuzzing._LOAD, "pytorch", load)
        return folder_fuzzing.judged(intact / "vit-0", "pytorch", load_model(intact / "vit-0"), 1e-4)

    return judge


def test_every_damaged_folder_answers_as_before_or_is_refused_once():
    outcome = folder_fuzzing.fuzz(80)
    assert outcome.unexpected == []
    assert outcome.mutants == 80 and outcome.succeeded > 10 and outcome.refused > 30


def damaged(intact, folder, name, seed):
    draw = random.Random(seed)
    damage(linked(intact / "vit-0", folder), name, intact / "vit-1", draw)
    seal(folder, name)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_the_same_seed_gives_the_same_damage_and_leaves_the_intact_folder(intact, tmp_path, name):
    before = {path: path.read_bytes() for path in intact.rglob("*.*")}
    first, again, *others = (
        damaged(intact, tmp_path / str(number), name, f"{name}-{seed}") for number, seed in enumerate("11234")
    )
    assert first == again and any(first != other for other in others)
    assert before == {path: path.read_bytes() for path in intact.rglob("*.*")}


def test_an_error_of_another_kind_and_one_of_two_lines_are_seen(judged):
    def fail(error):
        raise error

    assert "KeyError" in judged(lambda folder: fail(KeyError("head")))
    assert judged(lambda folder: fail(folder_fuzzing.OpenMedError("one\ntwo"))) == "says 'one\\ntwo'"
    assert judged(lambda folder: fail(folder_fuzzing.OpenMedError("one"))) == "refused"


def test_other_answers_are_seen(judged, intact):
    def changed(shift):
        model = load_model(intact / "vit-0")
        predict = model.assess
        model.assess = lambda films, **options: (predict(films)[0] + np.float32(shift), predict(films)[1])
        return model

    assert judged(lambda folder: load_model(intact / "vit-0")) == "answer"
    assert "off" in judged(lambda folder: load_model(intact / "vit-1"))
    for shift in ([1e-3, 0, -1e-3], [2, 0, -2], np.nan, 0.1):
        assert judged(lambda folder, shift=shift: changed(shift)).startswith("answers ")


def test_what_hashes_do_not_turn_away_reaches_parsers_and_control_films(intact, tmp_path):
    said = {WEIGHTS_FILE: set(), EXPORT_FILE: set(), SPEC_FILE: set()}
    for seed in range(30):
        for name, sentences in said.items():
            folder = tmp_path / f"{name}-{seed}"
            damaged(intact, folder, name, seed)
            try:
                (folder_fuzzing.load_predictor if name == EXPORT_FILE else load_model)(folder)
            except folder_fuzzing.OpenMedError as error:
                sentences.add(str(error).replace(str(folder), "").split(": ")[0][:60])
    assert any("answers the films" in each for each in said[WEIGHTS_FILE])
    assert any("does not fit" in each for each in said[WEIGHTS_FILE])
    assert any("answers the films" in each for each in said[EXPORT_FILE])
    assert any("does not hold a graph" in each for each in said[EXPORT_FILE])
    assert len(said[SPEC_FILE]) > 10
