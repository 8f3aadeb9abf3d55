"""Damaged films of every kind give an image or one refusal; decoders may crash, the run may not."""

import os
import signal
import threading

import numpy as np
import pytest
from pydicom import uid

from openmed.errors import BadInput
from openmed.films import isolated
from openmed.films.images import decode_film
from openmed.films.isolated import decode_isolated
from tests.openmed.films import fuzzing
from tests.openmed.films.stored import deep, dicom, phantom, transcoded

FILM = phantom(48)


@pytest.fixture
def lossless(tmp_path) -> bytes:
    return transcoded(dicom(deep(FILM, 12), BitsStored=12), uid.JPEGLossless, tmp_path)


def test_every_mutant_is_an_image_or_one_refusal():
    outcome = fuzzing.fuzz(2000)
    assert outcome.unexpected == []
    assert outcome.mutants == 2000 and outcome.succeeded > 200 and outcome.refused > 200


def test_the_same_seed_gives_the_same_mutant():
    first, again, other = (fuzzing.mutant(b"film" * 99, seed) for seed in ("0-1", "0-1", "0-2"))
    assert first == again != other


def test_no_film_that_was_cut_is_an_image():
    for kind, content in fuzzing.seeds().items():
        said = {fuzzing._decoded(fuzzing.cut(content, f"{kind}-{seed}")) for seed in range(20)}
        assert said == {"refused"}, kind


def test_a_wrong_error_and_a_wrong_result_are_seen(monkeypatch):
    def raise_wrongly(content, name):
        raise KeyError(name)

    monkeypatch.setattr(fuzzing, "decode_film", raise_wrongly)
    assert "KeyError" in fuzzing._decoded(b"")
    monkeypatch.setattr(fuzzing, "decode_film", lambda content, name: np.zeros((64, 64), np.uint16))
    assert fuzzing._decoded(b"") == "gives uint16 (64, 64)"


def test_a_swollen_film_claims_other_sides():
    film = fuzzing.pil(FILM, "PNG")
    claimed = {fuzzing.swollen(film, str(seed))[16:24] for seed in range(20)}
    assert film[16:24] in claimed and len(claimed) > 5


def test_gdcm_ending_its_process_is_a_refusal_and_the_next_film_is_read(lossless):
    decode_film(lossless)
    for process in list(isolated._idle):
        os.kill(process.pid, signal.SIGSTOP)
    victim = isolated._idle[-1]
    threading.Timer(0.2, victim.kill).start()
    with pytest.raises(BadInput, match=r"^x cannot be decoded: it is damaged$"):
        decode_isolated("gdcm", lossless, "x")
    np.testing.assert_array_equal(decode_film(lossless), FILM)
