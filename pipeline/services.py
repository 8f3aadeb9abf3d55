"""The local services of daily use: Airflow's four components and an MLflow server, on loopback.

`airflow standalone` is not used, because it opens its log servers on every interface.
"""

import configparser
import fcntl
import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from openmed.errors import ResourceError
from openmed.files import read_json, write_bytes, write_json
from pipeline.airflow_client import AirflowClient, open_local

LOOPBACK = "127.0.0.1"
ADMIN, REVIEWER = "admin", "reviewer"
_STOP_WITHIN_S = 15.0
_OFFLINE = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


class Services:
    """Airflow and MLflow of one project, started and stopped together; a context manager.

    Args:
        project: The folder that holds dvc.yaml and dags/.
        home: The state folder; everything the services write lies below it.
        airflow_port: Port of Airflow; 0 takes a free one.
        mlflow_port: Port of MLflow; 0 takes a free one, None starts no MLflow server.
        gpu_slots: How many trainings may run at once.
        schedule: Cron expression of the retraining, `off` for none, None for the default.
        parallelism: How many tasks may run at once.
    """

    def __init__(
        self,
        project: Path,
        home: Path,
        *,
        airflow_port: int = 0,
        mlflow_port: int | None = 0,
        gpu_slots: int = 1,
        schedule: str | None = None,
        parallelism: int = 4,
    ) -> None:
        self.project, self.home = Path(project).resolve(), Path(home).resolve()
        self.logs = self.home / "logs"
        self.airflow_home = self.home / "airflow"
        self.password_file = self.airflow_home / "passwords.json"
        self.username = ADMIN
        self._airflow_port = airflow_port or _free_port()
        self._mlflow_port = _free_port() if mlflow_port == 0 else mlflow_port
        self._gpu_slots, self._schedule, self._parallelism = gpu_slots, schedule, parallelism
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: io.TextIOWrapper | None = None

    @property
    def airflow_url(self) -> str:
        """Where Airflow answers."""
        return f"http://{LOOPBACK}:{self._airflow_port}"

    @property
    def mlflow_url(self) -> str | None:
        """Where MLflow answers, None when it is not started."""
        return f"http://{LOOPBACK}:{self._mlflow_port}" if self._mlflow_port else None

    @property
    def password(self) -> str:
        """Password of `username`."""
        return read_json(self.password_file)[self.username]

    def client(self, username: str = ADMIN) -> AirflowClient:
        """Returns a client that acts as `admin` or `reviewer`."""
        return AirflowClient(self.airflow_url, username, read_json(self.password_file)[username])

    def start(self) -> Self:
        """Starts everything and returns at once; see `wait_healthy`.

        Raises:
            ResourceError: They are running already, a port is taken, or the database cannot be made.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            for port in filter(None, (self._airflow_port, self._mlflow_port)):
                _check_port(port)
            self._write_settings()
            if self._mlflow_port:
                self._spawn("mlflow", *self._mlflow_command())
            self._migrate()
            api = ["-H", LOOPBACK, "-p", str(self._airflow_port), "-w", "1"]
            self._spawn("api-server", "airflow", "api-server", *api)
            self._spawn("scheduler", "airflow", "scheduler", "--skip-serve-logs")
            self._spawn("dag-processor", "airflow", "dag-processor")
            self._spawn("triggerer", "airflow", "triggerer", "--skip-serve-logs")
        except BaseException:
            self.stop()
            raise
        return self

    def wait_healthy(self, timeout_s: float = 120.0) -> float:
        """Waits until every component answers, then sets the pools.

        Returns:
            The seconds waited.

        Raises:
            ResourceError: A component ended or is not healthy in time; the message names its log.
        """
        started = time.monotonic()
        while missing := self._unhealthy():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = self.logs / f"{name}.log"
                    raise ResourceError(f"{name} ended with {process.returncode} at its start; see {log}")
            if time.monotonic() - started > timeout_s:
                raise ResourceError(
                    f"{', '.join(missing)} not healthy after {timeout_s:g} s; see {self.logs}"
                )
            time.sleep(0.3)
        self._set_pools()
        return time.monotonic() - started

    def wait_for_dag(self, dag_id: str, timeout_s: float = 60.0) -> None:
        """Waits until Airflow has read a DAG; ResourceError with its import error otherwise."""
        client, deadline = self.client(), time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(ResourceError):
                client.request("GET", f"dags/{dag_id}/details")
                return
            time.sleep(0.5)
        errors = [
            each["stack_trace"].strip() for each in client.request("GET", "importErrors")["import_errors"]
        ]
        last_lines = "; ".join(error.splitlines()[-1] for error in errors) or "no import error is known"
        raise ResourceError(f"Airflow has no DAG {dag_id} after {timeout_s:g} s: {last_lines}")

    def stop(self, within_s: float = _STOP_WITHIN_S) -> None:
        """Ends every process, those of running tasks and stages too, by force when time is up."""
        # A stage has a session of its own, so its processes are found by descent, not by group.
        family = self._descendants()
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        for name, process in self._processes.items():
            # The triggerer waits 10 s for triggers, and this project has none.
            with suppress(subprocess.TimeoutExpired):
                if name == "triggerer":
                    continue
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in family | self._descendants():
            with suppress(Exception):
                process.kill()
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _descendants(self) -> set[Any]:
        import psutil

        found = set()
        for process in self._processes.values():
            with suppress(psutil.Error):
                found.update(psutil.Process(process.pid).children(recursive=True))
        return found

    def _take_lock(self) -> None:
        lock = (self.home / "services.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ResourceError(f"the services of {self.home} are running already; stop them first") from None
        self._lock = lock

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.home,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The lock lives as long as any component, also when this process was killed.
                pass_fds=[self._lock.fileno()] if self._lock else [],
            )

    def _environment(self) -> dict[str, str]:
        # A setting of another Airflow in the caller's environment would win over our file.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW_")}
        path = os.pathsep.join(filter(None, [str(self.project), os.environ.get("PYTHONPATH")]))
        own = {
            "AIRFLOW_HOME": str(self.airflow_home),
            "OPENMED_PROJECT": str(self.project),
            "OPENMED_HOME": str(self.home),
            "PYTHONPATH": path,
        }
        if self._schedule is not None:
            own["OPENMED_SCHEDULE"] = self._schedule
        return {**inherited, **_OFFLINE, **own}

    def _write_settings(self) -> None:
        """Writes airflow.cfg and the passwords, both for the owner's eyes alone."""
        self.airflow_home.mkdir(parents=True, exist_ok=True)
        self.airflow_home.chmod(0o700)
        known = read_json(self.password_file) if self.password_file.exists() else {}
        if set(known) != {ADMIN, REVIEWER}:
            write_json(self.password_file, {user: secrets.token_urlsafe(18) for user in (ADMIN, REVIEWER)})
        self.password_file.chmod(0o600)
        secret_file = self.airflow_home / "secrets.json"
        if not secret_file.exists():
            write_json(secret_file, {name: secrets.token_urlsafe(64) for name in ("jwt", "session")})
        secret_file.chmod(0o600)
        text = io.StringIO()
        config = configparser.RawConfigParser()
        config.read_dict(self._settings(read_json(secret_file)))
        config.write(text)
        target = self.airflow_home / "airflow.cfg"
        # Airflow reads % as the start of a template in its own file.
        write_bytes(target, text.getvalue().replace("%", "%%").encode())
        target.chmod(0o600)

    def _settings(self, secret: dict[str, str]) -> dict[str, dict[str, Any]]:
        return {
            "core": {
                "dags_folder": self.project / "dags",
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": self._parallelism,
                # Safe because dags/retrain.py never makes up for a slot it was not there for.
                "dags_are_paused_at_creation": False,
                "simple_auth_manager_users": f"{ADMIN}:admin,{REVIEWER}:user",
                "simple_auth_manager_passwords_file": self.password_file,
                "execution_api_server_url": f"{self.airflow_url}/execution/",
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.airflow_home}/airflow.db"},
            "logging": {"base_log_folder": self.logs / "tasks"},
            "api": {
                "host": LOOPBACK,
                "port": self._airflow_port,
                "base_url": self.airflow_url,
                "workers": 1,
                "secret_key": secret["session"],
                "expose_config": False,
            },
            "api_auth": {"jwt_secret": secret["jwt"]},
            # Three missed heartbeats, the default, end a training when the API server restarts: wait
            # five minutes instead. A finished task holds its slot for one heartbeat, 5 s by default.
            "workers": {"max_failed_heartbeats": 300, "min_heartbeat_interval": 1},
            # A changed DAG file or dvc.yaml is seen within seconds.
            "dag_processor": {
                "refresh_interval": 10,
                "min_file_process_interval": 10,
                "parsing_processes": 1,
            },
        }

    def _migrate(self) -> None:
        """Brings the database to the installed version of Airflow, which takes 7 s, once."""
        from importlib.metadata import version

        marker, wanted = self.airflow_home / "migrated.json", version("apache-airflow")
        done = read_json(marker) if marker.exists() else None
        if done == wanted and (self.airflow_home / "airflow.db").exists():
            return
        log = self.logs / "migrate.log"
        with log.open("ab") as output:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            code = subprocess.run(
                command, cwd=self.home, env=self._environment(), stdout=output, stderr=output, check=False
            ).returncode
        if code != 0:
            raise ResourceError(f"Airflow's database could not be made (exit {code}); see {log}")
        write_json(marker, wanted)

    def _mlflow_command(self) -> list[str]:
        store, artifacts = f"sqlite:///{self.home / 'mlflow.db'}", str(self.home / "mlartifacts")
        place = ["--host", LOOPBACK, "--port", str(self._mlflow_port), "--workers", "1"]
        return [
            "mlflow",
            "server",
            "--backend-store-uri",
            store,
            "--artifacts-destination",
            artifacts,
            *place,
        ]

    def _unhealthy(self) -> list[str]:
        missing = []
        if self.mlflow_url:
            try:
                open_local(urllib.request.Request(f"{self.mlflow_url}/health"), 5.0).close()
            except OSError:
                missing.append("mlflow")
        try:
            health = AirflowClient(self.airflow_url, ADMIN, "", timeout_s=5.0).health()
        except ResourceError:
            return [*missing, "airflow"]
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return missing + [part for part in parts if (health.get(part) or {}).get("status") != "healthy"]

    def _set_pools(self) -> None:
        pools = {
            "gpu": (self._gpu_slots, "Trainings"),
            "registry": (1, "Moves of the champion, one at a time"),
        }
        actions = [
            {
                "action": "create",
                "action_on_existence": "overwrite",
                "entities": [
                    {"name": name, "slots": slots, "description": text, "include_deferred": False}
                    for name, (slots, text) in pools.items()
                ],
            }
        ]
        self.client().request("PATCH", "pools", {"actions": actions})


def up(project: Path, home: Path, **options: Any) -> None:
    """Starts the services, says where they are, and stops them on Ctrl-C or SIGTERM.

    Args:
        project: The folder that holds dvc.yaml and dags/.
        home: The state folder.
        **options: Those of `Services`.
    """
    stopped = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with Services(project, home, **options) as services:
            waited_s = _wait_unless(stopped, services)
            if waited_s is not None:
                print(f"Airflow  {services.airflow_url}   user {ADMIN} or {REVIEWER}")
                if services.mlflow_url:
                    print(f"MLflow   {services.mlflow_url}")
                print(f"The passwords are in {services.password_file}, logs in {services.logs}.")
                print(f"Ready after {waited_s:.0f} s. Ctrl-C stops everything.", flush=True)
                stopped.wait()
            print("Stopping ...", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_unless(stopped: threading.Event, services: Services) -> float | None:
    """Waits for health in short steps, so that Ctrl-C is heard meanwhile; None when it was."""
    started = time.monotonic()
    while not stopped.is_set():
        try:
            services.wait_healthy(timeout_s=1.0)
            return time.monotonic() - started
        except ResourceError as error:
            if "not healthy after" not in str(error) or time.monotonic() - started > 180:
                raise
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise ResourceError(f"port {port} is taken; choose another or 0 for a free one") from None


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
