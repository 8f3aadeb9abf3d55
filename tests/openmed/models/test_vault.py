import json
from hashlib import sha256

import pytest

from openmed.errors import BadInput, IntegrityError
from openmed.models.vault import VAULT_FILE, VaultEntry, put_in_vault, read_vault


def entry_of(source, **about):
    content = {
        "kind": "imagenet",
        "timm_name": "a_network",
        "file": "a_network.safetensors",
        "source": "timm/a_network",
        "revision": "abc",
        "licence": "mit",
        "sha256": sha256(source.read_bytes()).hexdigest(),
        "bytes": source.stat().st_size,
        "added_at": "2026-01-01T00:00:00+00:00",
    }
    return VaultEntry(**content | about)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def vault(tmp_path):
    return tmp_path / "vault"


def test_what_was_put_in_is_read_again_from_a_copy_of_the_folder(vault, source, tmp_path):
    entry = entry_of(source)
    put_in_vault(vault, source, entry)
    vault.rename(tmp_path / "elsewhere")
    assert read_vault(tmp_path / "elsewhere") == {"a_network": entry}
    assert entry.path_in(tmp_path / "elsewhere").read_bytes() == b"weights"
    assert read_vault(vault) == {}


def test_there_is_one_champion(vault, source):
    for version in ("1", "2"):
        put_in_vault(vault, source, entry_of(source, kind="champion", file=f"champion-{version}.safetensors"))
    assert read_vault(vault)["champion"].file == "champion-2.safetensors"
    assert sorted(path.name for path in vault.iterdir()) == ["champion-2.safetensors", VAULT_FILE]


def test_a_file_that_changed_on_its_way_is_not_kept(vault, source):
    entry = entry_of(source)
    source.write_bytes(b"others")
    with pytest.raises(IntegrityError, match="timm/a_network changed while it was copied"):
        put_in_vault(vault, source, entry)
    assert list(vault.iterdir()) == []


def test_after_a_kill_before_the_record_the_vault_is_as_before(vault, source, monkeypatch):
    put_in_vault(vault, source, entry_of(source, kind="champion", file="champion-1.safetensors"))
    before = read_vault(vault)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("openmed.models.vault.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            put_in_vault(vault, source, entry_of(source, kind="champion", file="champion-2.safetensors"))
    assert read_vault(vault) == before
    assert before["champion"].state(vault) == "intact"


@pytest.mark.parametrize("file", ["../outside", "/etc/passwd", "a/b"])
def test_a_record_that_points_outside_its_folder_is_refused(vault, source, file):
    put_in_vault(vault, source, entry_of(source))
    text = (vault / VAULT_FILE).read_text().replace('"a_network.safetensors"', json.dumps(file))
    (vault / VAULT_FILE).write_text(text)
    with pytest.raises(BadInput, match="names a file outside its folder"):
        read_vault(vault)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weights": [{}]}', '{"weights": 1}', "{", "\xff"])
def test_a_broken_record_is_one_sentence(vault, content):
    vault.mkdir()
    (vault / VAULT_FILE).write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=r"vault\.json"):
        read_vault(vault)
