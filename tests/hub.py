"""A stand-in for the weights hub: a local server with made-up weights of the right names and shapes."""

import json
import threading
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import huggingface_hub
import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
UNREACHABLE = "http://127.0.0.1:9"


class Hub(BaseHTTPRequestHandler):
    """The requests that the hub's client makes to fetch a file, and the one for a repository's card."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path, server = urlsplit(self.path).path, self.server
        server.requests.append((self.command, path))
        for name, content in server.contents.items():
            if path == f"/api/models/timm/{name}/revision/{REVISION}":
                card = {"license": server.licences[name]} if name in server.licences else {}
                about = {"id": f"timm/{name}", "sha": REVISION, "cardData": card, "siblings": []}
                return self.send(json.dumps(about).encode(), {}, with_body)
            if path in [f"/timm/{name}/resolve/{at}/model.safetensors" for at in ("main", REVISION)]:
                announced = server.announced or sha256(content).hexdigest()
                return self.send(content, {"ETag": f'"{announced}"', "X-Repo-Commit": REVISION}, with_body)
        return self.send_error(404)

    def send(self, content, headers, with_body):
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serve(contents, licences=None):
    """Serves weights by timm name.

    Yields:
        The server: `contents` and `licences` may be changed, `announced` is a hash to claim instead of the
        true one, `requests` are those that came, `address` is where it is.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.contents, server.licences = contents, licences or {}
    server.announced, server.requests = None, []
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_client(cache):
    """Gives a function that points the hub's client of this process at an address and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:

        def use(endpoint, offline=False, cache=cache):
            template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            settings = {
                "ENDPOINT": endpoint,
                "HUGGINGFACE_CO_URL_TEMPLATE": template,
                "HF_HUB_CACHE": str(cache),
                "HF_HUB_OFFLINE": offline,
            }
            for name, value in settings.items():
                patch.setattr(huggingface_hub.constants, name, value)
            huggingface_hub.close_session()

        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield use
    huggingface_hub.close_session()
