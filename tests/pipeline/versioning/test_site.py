"""The secret of a site and what is made from it."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from openmed.errors import BadInput
from pipeline.versioning import site


def test_of_those_who_make_the_secret_at_once_all_get_the_same(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENMED_SITE_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: site.seal_key(tmp_path), range(16)))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert os.listdir(tmp_path) == ["site_secret"]  # noqa: PTH208
    assert stat.S_IMODE((tmp_path / "site_secret").stat().st_mode) == 0o600


def test_the_key_of_seals_is_not_the_secret_of_pseudonyms(tmp_path, monkeypatch):
    secret = "a secret of this site"
    monkeypatch.setenv("OPENMED_SITE_SECRET", secret)
    key = site.seal_key(tmp_path)
    assert secret.encode() not in key and key == site.seal_key(tmp_path / "another host")
    monkeypatch.setenv("OPENMED_SITE_SECRET", "short")
    with pytest.raises(BadInput, match="shorter than 16 bytes"):
        site.seal_key(tmp_path)
