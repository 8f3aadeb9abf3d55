"""The secret of a site and what is made from it."""

import hashlib
import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmed.errors import BadInput, IntegrityError
from pipeline.versioning import site

SECRET = "a secret of this site"


def test_of_those_who_make_the_secret_at_once_all_get_the_same(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENMED_SITE_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        seals = {seal["hmac"] for seal in pool.map(lambda _: site.seal("text", tmp_path), range(16))}
    assert len(seals) == 1
    assert os.listdir(tmp_path) == ["site_secret"]  # noqa: PTH208
    assert stat.S_IMODE((tmp_path / "site_secret").stat().st_mode) == 0o600


def test_a_seal_is_that_of_one_text_and_one_secret_on_any_host(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    seal = site.seal("text", tmp_path)
    assert site.is_sealed("text", seal, tmp_path / "another host", "it")
    assert not site.is_sealed("another text", seal, tmp_path, "it")
    for forged in (None, "seal", {}, {"key": seal["key"]}, {"key": None, "hmac": ""}, seal | {"hmac": 0}):
        assert not site.is_sealed("text", forged, tmp_path, "it")
    monkeypatch.setenv("OPENMED_SITE_SECRET", "the secret of another")
    with pytest.raises(
        IntegrityError, match=r"it was sealed with another site secret .* OPENMED_SITE_SECRET"
    ):
        site.is_sealed("text", seal, tmp_path, "it")
    monkeypatch.setenv("OPENMED_SITE_SECRET", "short")
    with pytest.raises(BadInput, match="shorter than 16 bytes"):
        site.seal("text", tmp_path)


def test_seals_of_earlier_releases_hold(tmp_path, monkeypatch):
    """What lies on remotes was sealed so; a review may wait for days over an update."""
    monkeypatch.setenv("OPENMED_SITE_SECRET", SECRET)
    key = hashlib.scrypt(SECRET.encode(), salt=b"openmed seal 1", n=2**14, r=8, p=1, dklen=32)
    seal = {"key": hashlib.sha256(key).hexdigest()[:12], "hmac": hmac.digest(key, b"text", "sha256").hex()}
    assert site.seal("text", tmp_path) == seal
