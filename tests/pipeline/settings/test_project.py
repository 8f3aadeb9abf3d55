import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import requests
import sqlalchemy

from openmed.errors import BadInput, ResourceError
from pipeline.settings import project
from pipeline.settings.project import locked


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("OPENMED_PROJECT", "OPENMED_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    (root / "a/b").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    return root


def test_the_project_is_the_nearest_folder_above_with_a_graph(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "a/b")
    assert project.project_root() == checkout
    assert project.home() == checkout / ".openmed"
    assert project.tracking_uri() == f"sqlite:///{checkout}/.openmed/mlflow.db"


def test_the_environment_names_project_home_and_store(checkout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENMED_PROJECT", "checkout")
    assert project.project_root() == checkout
    monkeypatch.setenv("OPENMED_HOME", "state")
    assert project.home() == tmp_path / "state"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert project.tracking_uri() == "http://127.0.0.1:5000"


def test_a_folder_that_is_no_project_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not any((folder / "dvc.yaml").exists() for folder in tmp_path.parents):
        with pytest.raises(BadInput, match="is in no project"):
            project.project_root()
    monkeypatch.setenv("OPENMED_PROJECT", str(tmp_path))
    with pytest.raises(BadInput, match=r"holds no dvc\.yaml"):
        project.project_root()


def test_a_home_needs_no_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))
    assert project.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_tools_neither_phone_home_nor_unpickle_unless_someone_said_so(monkeypatch):
    for name in project._DEFAULTS:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    project.environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DVC_NO_ANALYTICS"] == "1"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "5"


@pytest.mark.parametrize(
    "named", [{}, {"no_proxy": "pacs.hospital, 127.0.0.1"}, {"NO_PROXY": "pacs.hospital"}]
)
def test_no_proxy_sees_calls_to_this_machine_and_other_exceptions_stay(named, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(name, named.get(name, ""))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.hospital:3128")
    project.environment()
    # What the standard library, requests and httpx make of it.
    local = ("http://127.0.0.1:8080/execution/", "http://localhost:5000", "https://localhost:5000")
    for address in local:
        assert urllib.request.proxy_bypass(urlsplit(address).hostname)
        assert requests.utils.get_environ_proxies(address) == {}
        with httpx.Client() as client:
            assert client._transport_for_url(httpx.URL(address)) is client._transport
            assert client._transport_for_url(httpx.URL("http://example.org")) is not client._transport
    assert requests.utils.get_environ_proxies("http://example.org")["http"] == "http://proxy.hospital:3128"
    assert bool(urllib.request.proxy_bypass("pacs.hospital")) == bool(named)
    before = os.environ["NO_PROXY"]
    project.environment()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == before


def test_the_state_folder_and_what_is_written_are_for_the_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "a/state"))
    before = os.umask(0o022)
    try:
        with project.locked("store"):
            (tmp_path / "a/state/mlflow.db").write_text("films")
        assert os.umask(0o022) == 0o077
        for name in ("a/state", "a/state/mlflow.db", "a/state/store.lock"):
            assert (tmp_path / name).stat().st_mode & 0o077 == 0
        # A state folder of before is closed too; a project that is its own state folder stays open.
        (tmp_path / "a/state").chmod(0o755)
        (tmp_path / "checkout").mkdir(mode=0o755)
        (tmp_path / "checkout/dvc.yaml").touch()
        project.state_folder()
        monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "checkout"))
        project.state_folder()
        modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a/state", "checkout")]
        assert modes == [0o700, 0o755]
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["plain", "ü é", "a#b", "a?b=c", "100%", "%20"])
def test_the_address_of_a_database_leads_to_its_file(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for driver in ("", "+pysqlite"):
        engine = sqlalchemy.create_engine(project.sqlite_address(folder / f"{driver}.db", driver))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE t (x)"))
        engine.dispose()
    assert sorted(path.name for path in folder.iterdir()) == ["+pysqlite.db", ".db"]
    assert list(tmp_path.iterdir()) == [folder]


def test_importing_it_loads_nothing_beyond_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import pipeline.settings.project;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - {'pipeline', 'openmed'};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    root = Path(project.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_lock_that_another_holds_is_waited_for_no_longer_than_said(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path))
    started = time.monotonic()
    refused = pytest.raises(ResourceError, match=r"works on the labels, for 0\.2 s by now")
    with locked("labels"), refused, locked("labels", wait_s=0.2):
        pass
    assert 0.2 <= time.monotonic() - started < 5
    with locked("labels", wait_s=0.2):
        pass
