"""What a stage does about a remote that is away, hangs up or is damaged."""

import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import host
import pytest
from airflow.sdk.exceptions import AirflowFailException
from configobj import ConfigObj
from host import Outage
from stage_operator import DvcStageOperator

from openmed.files import read_json, sha256_file
from pipeline.versioning import handover, training_states


def test_what_fails_on_the_way_is_an_outage_and_the_next_try_goes_on(hosts, monkeypatch):
    storage, away = hosts.root / "storage", hosts.root / "away"
    folder, real = hosts.on("two"), DvcStageOperator._dvc

    def and_then(verb, what):
        def dvc(self, where, *arguments):
            done = real(self, where, *arguments)
            if arguments[0] == verb:
                what()
            return done

        monkeypatch.setattr(DvcStageOperator, "_dvc", dvc)

    storage.rename(away)
    with pytest.raises(Outage, match="neither in the DVC cache nor whole on a remote"):
        hosts.stage("left")
    shutil.rmtree(storage, ignore_errors=True)
    away.rename(storage)

    def killed():
        (folder / "artifacts/validate/out.json").unlink()
        raise TimeoutError

    and_then("pull", killed)
    with pytest.raises(TimeoutError):
        hosts.stage("left")

    def gone():
        storage.rename(away)
        storage.write_text("no folder")

    and_then("repro", gone)
    with pytest.raises(Outage, match="what left wrote could not be pushed to the DVC remote store"):
        hosts.stage("left")
    storage.unlink()
    away.rename(storage)
    monkeypatch.setattr(DvcStageOperator, "_dvc", real)
    hosts.stage("left")
    seen = read_json(folder / "artifacts/left/out.json")["seen"]
    assert seen == sha256_file(hosts.on("one") / "artifacts/validate/out.json")
    assert hosts.wrote(b'{"stage": "left"')


def test_a_forced_stage_whose_push_failed_is_pushed_and_not_run_again(hosts):
    storage, away = hosts.root / "storage", hosts.root / "away"
    made = hosts.on("one") / "artifacts/left/out.json"
    storage.rename(away)
    storage.write_text("no folder")
    with pytest.raises(Outage, match="could not be pushed"):
        hosts.stage("left", force="True")
    written = made.stat().st_mtime_ns
    storage.unlink()
    away.rename(storage)
    hosts.stage("left", force="True")
    assert hosts.wrote(b'{"stage": "left"') and made.stat().st_mtime_ns == written
    hosts.stage("left", force="True")
    assert made.stat().st_mtime_ns > written


def test_a_damaged_output_on_the_remote_is_no_outage(hosts):
    (file,) = hosts.wrote(b'{"stage": "validate"')
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    with pytest.raises(AirflowFailException, match="holds a damaged copy of artifacts/validate"):
        hosts.stage("left")
    file.write_bytes(content)


def test_a_remote_that_hangs_up_while_it_is_read_is_an_outage(hosts):
    class Halting(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"a part")

        do_HEAD = do_GET

        def log_message(self, *_):
            """Says nothing."""

    settings = hosts.on("two") / ".dvc/config.local"
    kept = settings.read_text()
    with HTTPServer(("127.0.0.1", 0), Halting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = ConfigObj(kept.splitlines())
        remote['remote "store"']["url"] = f"http://127.0.0.1:{server.server_port}"
        settings.write_text("\n".join(remote.write()))
        try:
            with pytest.raises(Outage, match="neither in the DVC cache nor whole on a remote"):
                hosts.stage("left")
        finally:
            settings.write_text(kept)
            server.shutdown()


def test_a_page_of_a_run_is_found_on_the_remote_and_an_outage_ends_nothing(hosts, tmp_path):
    folder, said = hosts.on("two"), []
    page = tmp_path / "drift.html"
    page.write_text("<p>")
    handover.show(host.PROJECT, folder, page, said.append)
    name = f"openmed/states/{folder.name}/drift.html"
    assert (hosts.root / "storage" / name).read_text() == "<p>"
    assert said == [f"the page is {name} on the DVC remote store"]
    (hosts.root / "storage").rename(hosts.root / "away")
    (hosts.root / "storage").write_text("no folder")
    handover.show(host.PROJECT, folder, page, said.append)
    (hosts.root / "storage").unlink()
    (hosts.root / "away").rename(hosts.root / "storage")
    assert said[1].startswith("the page stays on this host: ")
    handover.show(host.PROJECT, tmp_path / "alone", page, said.append)
    training_states.forget(host.PROJECT, folder, said.append)
    assert len(said) == 2 and not (hosts.root / "storage" / name).exists()
