"""Objects on the default DVC remote: seen whole or not at all, told apart from an outage."""

import hashlib
import hmac
import json
import threading

import pytest

from openmed.errors import BadInput, IntegrityError, ResourceError
from pipeline.versioning.objects import NEWEST, Bundle, store


@pytest.fixture
def project(tmp_path):
    """A project whose default remote is a folder that is not there yet."""
    return with_remote(tmp_path / "project", str(tmp_path / "remote"))


def with_remote(folder, url):
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {url}\n"
    )
    return folder


@pytest.fixture
def shared(project):
    return store(project)


def test_without_a_default_remote_there_is_no_store(tmp_path):
    assert store(tmp_path) is None
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("['remote \"other\"']\n    url = /nowhere\n")
    assert store(tmp_path) is None


def test_what_is_put_lies_below_openmed_on_the_remote_and_comes_back(shared, tmp_path):
    (tmp_path / "a").write_bytes(b"state")
    shared.put("states/run-1/train@vit/a.bin", tmp_path / "a")
    shared.write("states/run-1/train@vit/b.json", b"{}")
    assert (tmp_path / "remote/openmed/states/run-1/train@vit/a.bin").read_bytes() == b"state"
    assert shared.names("states") == ["states/run-1/train@vit/a.bin", "states/run-1/train@vit/b.json"]
    assert shared.get("states/run-1/train@vit/a.bin", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"state"
    assert shared.read("states/run-1/train@vit/b.json") == b"{}"


def test_what_is_not_there_is_no_outage(shared, tmp_path):
    (tmp_path / "kept").write_text("before")
    assert shared.names("states") == []
    assert shared.read("states/none") is None
    assert not shared.get("states/none", tmp_path / "kept")
    shared.delete("states/none")
    assert (tmp_path / "kept").read_text() == "before"


def test_deleting_takes_a_folder_and_nothing_beside_it(shared):
    for name in ("states/run-1/a", "states/run-1/b/c", "states/run-10/a", "live/a"):
        shared.write(name, b"x")
    shared.delete("states/run-1")
    assert shared.names("states") == ["states/run-10/a"]
    assert shared.names("live") == ["live/a"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", ".hidden", "a b", "a/é"])
def test_a_name_that_could_lead_elsewhere_is_refused(shared, name):
    for use in (shared.names, shared.read, shared.delete, lambda name: shared.write(name, b"x")):
        with pytest.raises(BadInput, match="no name of an object"):
            use(name)


def test_what_is_still_being_written_is_not_listed(shared, tmp_path):
    shared.write("live/a", b"x")
    (tmp_path / "remote/openmed/live/.b.1234.tmp").write_bytes(b"half")
    assert shared.names("live") == ["live/a"]


def test_a_reader_sees_the_old_object_or_the_new_one(shared):
    contents = {bytes([each]) * 300_000 for each in b"ab"}
    shared.write("live/page", min(contents))
    ended = threading.Event()

    def write():
        for _ in range(20):
            for content in contents:
                shared.write("live/page", content)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not ended.is_set():
        seen.add(shared.read("live/page"))
    writer.join()
    assert seen <= contents and seen


def test_an_outage_is_a_resource_error_in_one_sentence(shared, tmp_path):
    (tmp_path / "remote").write_text("a file where the folder of the remote was")
    for use in (shared.read, shared.names, lambda name: shared.write(name, b"x")):
        with pytest.raises(ResourceError, match=r"^the DVC remote shared does not answer: [^\n]+$"):
            use("live/a")


def test_a_kind_of_storage_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(BadInput, match="'dvc-oss' to be installed"):
        store(with_remote(tmp_path, "oss://bucket/path"))


def test_bundles_of_earlier_releases_are_read_and_nothing_else_is(shared, tmp_path, monkeypatch):
    secret, place = "a secret of this site", "live/0123"
    monkeypatch.setenv("OPENMED_SITE_SECRET", secret)
    key = hashlib.scrypt(secret.encode(), salt=b"openmed seal 1", n=2**14, r=8, p=1, dklen=32)
    content = json.dumps({"files": {"a": "0" * 64}, "about": {"log": "x"}})
    sealed = hmac.digest(key, f"bundle\n{place}\n{content}".encode(), "sha256").hex()
    envelope = {"content": content, "key": hashlib.sha256(key).hexdigest()[:12], "hmac": sealed}
    shared.write(f"{place}/{NEWEST}", json.dumps(envelope).encode())
    assert Bundle.newest(shared, place, tmp_path) == Bundle({"a": "0" * 64}, {"log": "x"})
    unsealed, nested = json.dumps({"content": content}).encode(), b"[" * 100_000
    halves = b'{"content": "\\ud800"}', b'{"content": "{}", "hmac": "\\ud800"}'
    for damaged in (b"", b"[]", b"{}", unsealed, nested, *halves):
        shared.write(f"{place}/{NEWEST}", damaged)
        with pytest.raises(IntegrityError, match="has no valid seal: something else wrote it"):
            Bundle.newest(shared, place, tmp_path)
