"""The local services of daily use: Airflow's four components and an MLflow server, on loopback.

`airflow standalone` is not used, because it opens its log servers on every interface.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx

from openmed.errors import BadInput, ResourceError
from openmed.files import read_json
from pipeline.local import airflow_variables
from pipeline.local.airflow_settings import ADMIN, ENGINEER, LOOPBACK, REVIEWER, AirflowSettings
from pipeline.local.airflow_variables import Sections
from pipeline.settings.project import state_folder
from pipeline.tools.airflow_client import AirflowClient
from pipeline.tools.processes import descendants, ending_signals, kill, record, signal_group, take_lock
from pipeline.tools.torchrun import free_port
from pipeline.tracking import doors, server


class Services:
    """Airflow and MLflow of one project, started and stopped together; a context manager.

    Args:
        project: The folder that holds dvc.yaml and dags/.
        home: The state folder, below which everything lies that they write.
        airflow_port: 0 takes a free one.
        mlflow_port: 0 takes a free one. None starts no MLflow server, nor is one started when
            MLFLOW_TRACKING_URI names a server, where the models are then.
        gpu_slots: How many trainings may run at once.
        schedule: As `AirflowSettings`.
        parallelism: How many tasks may run at once.
        given: As `AirflowSettings`.
        store: MLflow's own variables that say where the server keeps tables and files; tasks reach them
            through the server then. Empty for the state folder.

    Raises:
        BadInput: A store is named, and a server elsewhere too.
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
        given: Sections | None = None,
        store: Mapping[str, str] | None = None,
    ) -> None:
        self.project, self.home = Path(project).resolve(), Path(home).resolve()
        self.logs = self.home / "logs"
        self._settings = AirflowSettings(
            self.project, self.home, airflow_port or free_port(), schedule, parallelism, given or {}
        )
        self._store = dict(store or {})
        if os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http:", "https:")):
            if self._store:
                raise BadInput(
                    f"{' and '.join(self._store)} name a store, and MLFLOW_TRACKING_URI a server elsewhere: "
                    "keep one of them"
                )
            mlflow_port = None
        self._mlflow_port = free_port() if mlflow_port == 0 else mlflow_port
        self.airflow_url = self._settings.url
        self.mlflow_url = f"http://{LOOPBACK}:{self._mlflow_port}" if self._mlflow_port else None
        self._gpu_slots = gpu_slots
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: io.TextIOWrapper | None = None

    def passwords(self) -> dict[str, str]:
        """Returns user -> password."""
        return read_json(self._settings.password_file)

    def client(self, username: str = ADMIN) -> AirflowClient:
        """Returns a client that acts as one of the users."""
        return AirflowClient(self.airflow_url, username, self.passwords()[username])

    def start(self) -> Self:
        """Starts everything and returns at once; see `wait_healthy`.

        Raises:
            ResourceError: They are running already, a port is taken, or the database cannot be made.
        """
        state_folder(self.home)
        self.logs.mkdir(exist_ok=True)
        self._take_lock()
        try:
            for port in filter(None, (self._settings.port, self._mlflow_port)):
                _check_port(port)
            self._settings.write()
            if self._mlflow_port:
                if self._store:
                    doors.write_settings(self.home)
                self._spawn("mlflow", "pipeline.tracking.server", str(self._mlflow_port))
            self._settings.migrate(self.logs / "migrate.log")
            api = ["-H", LOOPBACK, "-p", str(self._settings.port), "-w", "1"]
            self._spawn("api-server", "airflow", "api-server", *api)
            self._spawn("scheduler", "airflow", "scheduler", "--skip-serve-logs")
            self._spawn("dag-processor", "airflow", "dag-processor")
            self._spawn("triggerer", "airflow", "triggerer", "--skip-serve-logs")
        except BaseException:
            self.stop()
            raise
        return self

    def _take_lock(self) -> None:
        self._lock = take_lock(self.home)
        if self._lock is None:
            raise ResourceError(f"the services of {self.home} are running already: `openmed down` stops them")

    def wait_healthy(self, timeout_s: float = 120.0, stopped: threading.Event | None = None) -> float | None:
        """Waits until every component answers, then sets the pools.

        Returns:
            The seconds waited; None when it was `stopped` meanwhile.

        Raises:
            ResourceError: A component ended or is not healthy in time; the message names its log.
        """
        started, stopped = time.monotonic(), stopped or threading.Event()
        while missing := self._unhealthy():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = self.logs / f"{name}.log"
                    raise ResourceError(f"{name} ended with {process.returncode} at its start; see {log}")
            if time.monotonic() - started > timeout_s:
                raise ResourceError(
                    f"{', '.join(missing)} not healthy after {timeout_s:g} s; see {self.logs}"
                )
            if stopped.wait(0.3):
                return None
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

    def stop(self, within_s: float = 15.0) -> None:
        """Ends every process, those of running tasks and stages too, by force when time is up."""
        pids = [process.pid for process in self._processes.values()]
        family = descendants(pids)
        for process in self._processes.values():
            signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        for name, process in self._processes.items():
            # The triggerer waits 10 s for triggers, and this project has none.
            with suppress(subprocess.TimeoutExpired):
                if name == "triggerer":
                    continue
                process.wait(max(0.0, deadline - time.monotonic()))
        left = family | descendants(pids)
        for process in self._processes.values():
            signal_group(process.pid, signal.SIGKILL)
            process.wait()
        kill(left)
        self._processes.clear()
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, name: str) -> dict[str, str]:
        """Returns the whole environment of a component; only that of `mlflow` has the address of a store."""
        # A review links to the report in MLflow, as a browser on this machine reaches it.
        shown = {"OPENMED_MLFLOW_URL": self.mlflow_url} if self.mlflow_url else {}
        if name == "mlflow":
            shown |= self._store
        elif self._store and self.mlflow_url:
            shown["MLFLOW_TRACKING_URI"] = self.mlflow_url
            shown[f"{doors.PASSWORD}_FILE"] = str(doors.admin_file(self.home))
        if self._gpu_slots > 1:
            # Trainings side by side: a thread that waits must not spin on a core that another could use.
            shown["OMP_WAIT_POLICY"] = "passive"
        return self._settings.environment() | shown

    def _spawn(self, name: str, module: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=self.home,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The lock lives as long as any component, also when this process was killed.
                pass_fds=[self._lock.fileno()] if self._lock else [],
            )
        record(self.home, {name: process.pid for name, process in self._processes.items()})

    def _unhealthy(self) -> list[str]:
        missing = []
        if self.mlflow_url:
            try:
                httpx.get(f"{self.mlflow_url}/health", timeout=5.0, trust_env=False).raise_for_status()
            except httpx.HTTPError:
                missing.append("mlflow")
        try:
            health = AirflowClient(self.airflow_url, ADMIN, "", timeout_s=5.0).health()
        except ResourceError:
            return [*missing, "airflow"]
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return missing + [part for part in parts if (health.get(part) or {}).get("status") != "healthy"]

    def _set_pools(self) -> None:
        moves = "Moves of the champion, one at a time"
        entities = [
            {"name": name, "slots": slots, "description": text, "include_deferred": False}
            for name, slots, text in (("gpu", self._gpu_slots, "Trainings"), ("registry", 1, moves))
        ]
        actions = [{"action": "create", "action_on_existence": "overwrite", "entities": entities}]
        self.client().request("PATCH", "pools", {"actions": actions})


def up(project: Path, home: Path, **options: Any) -> None:
    """Starts `Services`, says where they are, and stops them on Ctrl-C, SIGTERM or a closed terminal.

    Airflow runs with what its own variables say, as far as `airflow_variables` takes them.
    """
    given = airflow_variables.given(os.environ)
    store = server.given(os.environ)
    if taken := [*airflow_variables.names(given), *store]:
        print(f"Taken from the environment: {', '.join(taken)}.", flush=True)
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in ending_signals()}
    try:
        with Services(project, home, given=given, store=store, **options) as services:
            waited_s = services.wait_healthy(180, stopped)
            if waited_s is not None:
                print(f"Airflow  {services.airflow_url}   users {ADMIN}, {REVIEWER} and {ENGINEER}")
                files = [home / "airflow" / "passwords.json"]
                if services.mlflow_url:
                    users = f"users {doors.ADMIN}, and {doors.READER} who only reads"
                    print(f"MLflow   {services.mlflow_url}   {users}")
                    files.append(doors.password_file(home))
                print(f"The passwords are in {' and '.join(map(str, files))}, logs in {services.logs}.")
                print(f"Ready after {waited_s:.0f} s. Ctrl-C or `openmed down` stops everything.", flush=True)
                stopped.wait()
            with suppress(OSError):  # the terminal may be gone
                print("Stopping ...", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise ResourceError(f"port {port} is taken; choose another or 0 for a free one") from None
