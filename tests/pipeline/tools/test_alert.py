"""Messages to people, sent to a real local server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from openmed.errors import BadInput, ResourceError
from pipeline.tools.alert import send_alert
from pipeline.tools.terminal import guarded


@pytest.fixture
def webhook(monkeypatch):
    """A server that keeps what it is sent; it refuses what is sent to /broken."""
    kept = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            kept.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/broken" else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENMED_ALERT_URL", f"http://127.0.0.1:{server.server_port}/secret")
    yield kept
    server.shutdown()
    server.server_close()


def test_the_message_arrives_as_chats_take_it(webhook):
    assert send_alert("Version 1 is on hold.")
    assert webhook == [{"text": "Version 1 is on hold."}]


def test_without_an_address_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("OPENMED_ALERT_URL", raising=False)
    assert not send_alert("anything")


def test_an_address_that_is_open_to_listeners_is_refused(monkeypatch):
    monkeypatch.setenv("OPENMED_ALERT_URL", "http://chat.example.org/secret")
    with pytest.raises(BadInput, match="must be an https address") as refused:
        send_alert("anything")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("path", ["/broken", None])
def test_a_message_that_was_not_taken_is_an_error_without_the_address(webhook, monkeypatch, path):
    import os

    address = os.environ["OPENMED_ALERT_URL"]
    monkeypatch.setenv(
        "OPENMED_ALERT_URL", address.replace("/secret", path) if path else "http://127.0.0.1:9/secret"
    )
    with pytest.raises(ResourceError, match="did not take the message") as refused:
        send_alert("anything")
    assert "secret" not in str(refused.value) and "127.0.0.1" not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_refusal_and_is_not_followed(webhook, monkeypatch, status):
    asked = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(status)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def do_GET(self):
            asked.append(self.path)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OPENMED_ALERT_URL", f"http://127.0.0.1:{server.server_port}/secret")
        with pytest.raises(ResourceError, match=rf"did not take the message \({status}\)"):
            send_alert("anything")
        server.shutdown()
    assert not asked
    assert not webhook


@pytest.mark.parametrize(
    "address",
    [
        *("https://h.example/SECRET x", "https://h.example/SECRET\n", "https://[SECRET", "https:///SECRET"),
        *(
            "https://h.example:99999/SECRET",
            "https://h.example:x/SECRET",
            "SECRET",
            "https://h.example/SECRÉT",
        ),
        *("ftp://127.0.0.1/SECRET", "http://127.0.0.1@h.example/SECRET", "file:///etc/SECRET"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(monkeypatch, capsys, address):
    monkeypatch.setenv("OPENMED_ALERT_URL", address)
    assert guarded(lambda: send_alert("anything"), debug=True) == 2
    shown = "".join(capsys.readouterr())
    assert "must be an https address" in shown
    assert "SECR" not in shown
    assert "h.example" not in shown


def test_the_address_is_in_no_log(webhook, caplog):
    caplog.set_level("INFO")
    assert send_alert("anything")
    assert "secret" not in caplog.text
