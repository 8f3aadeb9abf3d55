"""The servers of the scenery, each a machine of its own: Postgres, Redis, S3 and git, on loopback."""

import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.tools.torchrun import free_port
from tests.two_hosts.door import Door
from tests.two_hosts.host import Host, ended

ROOT = Path(__file__).parents[2]
WORKERS = ("alpha", "beta")
QUEUES = ("default", "gpu")
# What the environment has not: see requirements.lock in this folder.
EXTRA = Path(sys.prefix) / ".two-hosts"
_DISK_MB = 3000
_READY_S = 240
_BUCKETS = ("films", "models", "logs")
_PORTS = ("postgres", "redis", "storage", "git", "mlflow", "airflow")
_AUTHOR = ("-c", "user.name=two-hosts", "-c", "user.email=two-hosts@localhost", "-c", "commit.gpgsign=false")

Command = tuple[str, tuple[str, ...], dict[str, str]]
"""Machine, command and variables of a service."""


class Servers:
    """All machines, of which four serve: what a site has before Airflow and MLflow come."""

    def __init__(self, folder: Path, settle: Callable[[Path], None]) -> None:
        """Takes an empty folder, and what changes the settings of a checkout before they are committed."""
        self.folder, self._settle = folder, settle
        self.port = {name: free_port() for name in _PORTS}
        self.password = {name: secrets.token_urlsafe(18) for name in ("postgres", "redis", "site")}
        self.hosts: dict[str, Host] = {}
        self.services: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: list[str] = []
        self._commands: dict[str, Command] = {}
        self._lock = threading.Lock()
        self.door: Door | None = None

    def serve(self) -> None:
        """Switches all machines on and starts the four servers."""
        names = ("postgres", "redis", "storage", "git", "tracking", "office", "solo", *WORKERS)
        for number, name in enumerate(names):
            self.hosts[name] = Host(name, 47_001 + number, self.folder, _DISK_MB if name == "beta" else None)
            self.hosts[name].on()
        self._postgres()
        self.start_redis()
        self._storage()
        self._git()
        threading.Thread(target=self._supervise, daemon=True).start()

    def kill(self, service: str) -> None:
        """Kills a service with SIGKILL; it stays away until it is started."""
        with self._lock:
            process = self.services.pop(service)
        ended(process)

    def cut(self, name: str) -> None:
        """Cuts the power of a machine."""
        with self._lock:
            for service in [each for each in self.services if self._commands[each][0] == name]:
                del self.services[service]
        self.hosts[name].cut()

    def _supervise(self) -> None:
        """Starts a service that has ended by itself again, as systemd, Docker or Kubernetes do."""
        while True:
            time.sleep(2)
            with self._lock:
                for service in [
                    each for each, process in self.services.items() if process.poll() is not None
                ]:
                    host, command, variables = self._commands[service]
                    self.restarts.append(service)
                    self.services[service] = self.hosts[host].spawn(service, *command, variables=variables)

    def _postgres(self) -> None:
        host = self.hosts["postgres"]
        host.run("bash", "-c", 'printf %s "$WORD" >pw', variables={"WORD": self.password["postgres"]})
        host.run(program("initdb"), "-D", "data", "-U", "postgres", "--auth=scram-sha-256", "--pwfile=pw")
        self.start_postgres()
        for name in ("airflow", "mlflow"):
            self._psql(f"CREATE DATABASE {name}")

    def start_postgres(self) -> None:
        address = ["-p", str(self.port["postgres"]), "-h", "127.0.0.1", "-k", ""]
        self.spawn("postgres", "postgres", program("postgres"), "-D", "data", *address)
        until(lambda: self._psql("SELECT 1"), "postgres")

    def _psql(self, text: str) -> None:
        variables = {"PGPASSWORD": self.password["postgres"]}
        command = ["psql", "-h", "127.0.0.1", "-p", str(self.port["postgres"]), "-U", "postgres", "-c", text]
        self.hosts["postgres"].run(*command, variables=variables)

    def database(self, name: str, kind: str = "postgresql+psycopg2") -> str:
        """Returns the address of a database."""
        return f"{kind}://postgres:{self.password['postgres']}@127.0.0.1:{self.port['postgres']}/{name}"

    def start_redis(self) -> None:
        port = str(self.port["redis"])
        options = ["--bind", "127.0.0.1", "--port", port, "--appendonly", "yes", "--appendfsync", "always"]
        self.spawn("redis", "redis", "redis-server", *options, "--requirepass", self.password["redis"])
        asked = {"REDISCLI_AUTH": self.password["redis"]}
        until(lambda: self.hosts["redis"].run("redis-cli", "-p", port, "ping", variables=asked), "redis")

    def _storage(self) -> None:
        server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port["storage"])]
        self.spawn("storage", "storage", *server, variables={"PYTHONPATH": str(EXTRA)})
        self.door = Door(self.port["storage"])
        until(lambda: [self.s3().create_bucket(Bucket=each) for each in _BUCKETS], "storage")

    def s3(self):
        """Returns a client of the object storage that passes no door."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port['storage']}",
            aws_access_key_id="two-hosts",
            aws_secret_access_key="two-hosts",
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 0}, proxies={}),
        )

    def stored_weights(self) -> set[str]:
        """Returns the keys of all weights that MLflow has put into the object storage."""
        pages = self.s3().get_paginator("list_objects_v2").paginate(Bucket="models")
        keys = (each["Key"] for page in pages for each in page.get("Contents", []))
        return {key for key in keys if key.endswith("weights.safetensors")}

    @property
    def repository(self) -> str:
        """Returns the address of the git repository that all machines know."""
        return f"git://127.0.0.1:{self.port['git']}/openmed.git"

    def _git(self) -> None:
        host = self.hosts["git"]
        host.run("git", "init", "--quiet", "--bare", "--initial-branch=main", "openmed.git")
        daemon = ["git", "daemon", f"--base-path={host.home}", "--export-all", "--enable=receive-pack"]
        self.spawn("git", "git", *daemon, "--listen=127.0.0.1", f"--port={self.port['git']}")
        until(lambda: _run("git", "ls-remote", self.repository), "git")
        checkout = self.folder / "checkout"
        _run("git", "clone", "--quiet", str(ROOT), str(checkout))
        self._settle(checkout)
        remote = [sys.executable, "-m", "dvc", "remote"]
        _run(*remote, "add", "--default", "storage", "s3://films/dvc", folder=checkout)
        _run(*remote, "modify", "storage", "endpointurl", self.endpoint, folder=checkout)
        _run("git", *_AUTHOR, "commit", "--quiet", "--all", "--message", "Settings", folder=checkout)
        _run("git", "push", "--quiet", self.repository, "HEAD:refs/heads/main", folder=checkout)
        shutil.rmtree(checkout)

    @property
    def endpoint(self) -> str:
        """Returns the address of the object storage, which passes the door."""
        if self.door is None:
            raise RuntimeError("the storage has not been started")
        return f"http://127.0.0.1:{self.door.port}"

    def queued(self) -> int:
        """Returns how many messages wait in the broker for a worker."""
        asked = {"REDISCLI_AUTH": self.password["redis"]}
        command = ["redis-cli", "-p", str(self.port["redis"]), "llen"]
        return sum(int(self.hosts["redis"].run(*command, queue, variables=asked)) for queue in QUEUES)

    def spawn(self, service: str, host: str, *command: str, variables: dict[str, str] | None = None) -> None:
        """Starts a service on a machine, where it is kept alive."""
        with self._lock:
            self._commands[service] = (host, command, variables or {})
            self.services[service] = self.hosts[host].spawn(service, *command, variables=variables or {})


def program(name: str) -> str | None:
    """Returns where a program is; Debian keeps those of Postgres out of the way."""
    return shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)


def _run(*command: str, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout.strip()


def until(attempt: Callable[[], object], what: str, within_s: float = _READY_S) -> None:
    """Tries again until it works; the last error counts when time is up."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            attempt()
            return
        except Exception as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not ready after {within_s:g} s: {error}") from error
            time.sleep(0.5)
