"""The settings of the local Airflow: its file, users, secrets, environment and database.

Hides Airflow's option names and what must never leave this machine or its owner.
"""

import configparser
import io
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from openmed.errors import BadInput, ResourceError
from openmed.files import read_json, write_bytes, write_json
from pipeline.local import airflow_variables
from pipeline.local.airflow_variables import Sections
from pipeline.settings.project import sqlite_address, without_proxy
from pipeline.settings.variables import SECRETS, variables
from pipeline.tools.airflow_client import AUDITOR
from pipeline.tracking import server

LOOPBACK = "127.0.0.1"
ADMIN, REVIEWER, ENGINEER = "admin", "reviewer", "engineer"
# Whoever starts a run or answers a question needs the role `user`, which may write XComs and states as well:
# decisions stand on neither.
_ROLES = {ADMIN: "admin", REVIEWER: "user", ENGINEER: "user", AUDITOR: "viewer"}
_OFFLINE = {
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class AirflowSettings:
    """Where one project's Airflow lives and how it runs; see `Services`. Both folders are absolute."""

    project: Path
    home: Path
    port: int
    schedule: str | None
    """Cron expression of the retraining, `off` for none, None for the default."""
    parallelism: int
    given: Sections = field(default_factory=dict)
    """Airflow's own settings that stand in the place of ours; see `airflow_variables.given`."""
    name: str = "airflow"
    """Of AIRFLOW_HOME in the state folder."""

    @property
    def folder(self) -> Path:
        """AIRFLOW_HOME."""
        return self.home / self.name

    @property
    def password_file(self) -> Path:
        """JSON of user -> password."""
        return self.folder / "passwords.json"

    @property
    def url(self) -> str:
        """Where Airflow answers."""
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self) -> dict[str, str]:
        """Returns the whole environment of a component; no secret is in it, see `write`."""
        # A setting in the caller's environment would win over our file, and reach every task.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("AIRFLOW_") and key not in (*SECRETS, server.STORE, server.FILES)
        }
        path = os.pathsep.join(filter(None, [str(self.project), os.environ.get("PYTHONPATH")]))
        own = {
            "AIRFLOW_HOME": str(self.folder),
            "OPENMED_PROJECT": str(self.project),
            "OPENMED_HOME": str(self.home),
            "PYTHONPATH": path,
            **{f"{name}_FILE": str(self._secret_file(name)) for name in SECRETS if os.environ.get(name)},
        }
        if self.schedule is not None:
            own["OPENMED_SCHEDULE"] = self.schedule
        return {**inherited, **_OFFLINE, **without_proxy(inherited), **own}

    def write(self) -> None:
        """Writes airflow.cfg, the passwords and the secrets, all for the owner's eyes alone.

        Passwords and secrets that exist are kept. Secrets of the caller's environment (`SECRETS`) go into
        files, which components read.

        Raises:
            BadInput: OPENMED_TIMEZONE is no time zone.
        """
        self.write_configuration()
        known = read_json(self.password_file) if self.password_file.exists() else {}
        missing = _ROLES.keys() - set(known)
        if missing:
            write_json(self.password_file, known | {user: secrets.token_urlsafe(18) for user in missing})
        self.password_file.chmod(0o600)

    def write_configuration(self) -> None:
        """As `write`, without the passwords: what a worker needs."""
        _check_time_zone()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in SECRETS:
            if value := os.environ.get(name):
                write_bytes(self._secret_file(name), value.encode())
                self._secret_file(name).chmod(0o600)
        secret_file = self.folder / "secrets.json"
        if not secret_file.exists():
            write_json(secret_file, {name: secrets.token_urlsafe(64) for name in ("jwt", "session")})
        secret_file.chmod(0o600)
        text = io.StringIO()
        config = configparser.RawConfigParser()
        sections = self._sections(read_json(secret_file))
        config.read_dict(airflow_variables.merged(sections, self.given))
        config.write(text)
        target = self.folder / "airflow.cfg"
        # Airflow reads % as the start of a template in its own file.
        write_bytes(target, text.getvalue().replace("%", "%%").encode())
        target.chmod(0o600)

    def migrate(self, log: Path) -> None:
        """Brings the database to the installed version of Airflow, which takes 7 s; our own one once.

        Raises:
            ResourceError: It could not be made; the message names `log`.
        """
        marker, wanted = self.folder / "migrated.json", version("apache-airflow")
        done = read_json(marker) if marker.exists() else None
        shared = airflow_variables.has(self.given, "database", "sql_alchemy_conn")
        if not shared and done == wanted and (self.folder / "airflow.db").exists():
            return
        command = [sys.executable, "-m", "airflow", "db", "migrate"]
        with log.open("ab") as output:
            ended = subprocess.run(
                command, cwd=self.home, env=self.environment(), stdout=output, stderr=output, check=False
            )
        if ended.returncode != 0:
            raise ResourceError(f"Airflow's database could not be made (exit {ended.returncode}); see {log}")
        if not shared:
            write_json(marker, wanted)

    def _secret_file(self, name: str) -> Path:
        return self.folder / name.lower()

    def _sections(self, secret: dict[str, str]) -> dict[str, dict[str, Any]]:
        return {
            "core": {
                "dags_folder": self.project / "dags",
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": self.parallelism,
                # Safe because dags/retrain.py never makes up for a slot it was not there for.
                "dags_are_paused_at_creation": False,
                "simple_auth_manager_users": ",".join(f"{user}:{role}" for user, role in _ROLES.items()),
                "simple_auth_manager_passwords_file": self.password_file,
                "execution_api_server_url": f"{self.url}/execution/",
            },
            "database": {"sql_alchemy_conn": sqlite_address(self.folder / "airflow.db")},
            "logging": {"base_log_folder": self.home / "logs" / "tasks"},
            "api": {
                "host": LOOPBACK,
                "port": self.port,
                "base_url": self.url,
                "workers": 1,
                "secret_key": secret["session"],
                "expose_config": False,
            },
            "api_auth": {"jwt_secret": secret["jwt"]},
            # Three missed heartbeats, the default, end a training when the API server restarts: wait
            # five minutes instead. A finished task holds its slot for one heartbeat, 5 s by default.
            "workers": {"max_failed_heartbeats": 300, "min_heartbeat_interval": 1},
            # A task that no worker takes is queued anew every ten minutes, and after so many times it fails,
            # with no try left: not before the time is over in which an outage may pass.
            "scheduler": {"num_stuck_in_queued_retries": 2 + int(variables().outage_minutes / 10)},
            # A changed DAG file is seen within seconds, a changed dvc.yaml within half a minute.
            "dag_processor": {
                "refresh_interval": 10,
                "min_file_process_interval": 30,
                "parsing_processes": 1,
            },
        }


def _check_time_zone() -> None:
    name = variables().timezone
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInput(
            f"OPENMED_TIMEZONE is {name}, which is no time zone: name one as Europe/Vienna"
        ) from None
