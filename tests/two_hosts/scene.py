"""The scenery: Airflow, MLflow and two workers that share nothing but loopback with each other."""

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from openmed.errors import ResourceError
from pipeline.tools.airflow_client import AUDITOR, AirflowClient
from tests.two_hosts.servers import EXTRA, QUEUES, WORKERS, Servers, until


class Scene(Servers):
    """Two hosts and all that they need; a context manager that leaves no process behind."""

    def __init__(self, folder: Path, settle: Callable[[Path], None]) -> None:
        """As Servers."""
        super().__init__(folder, settle)
        self.secret = {name: secrets.token_urlsafe(64) for name in ("jwt", "session")}

    def __enter__(self) -> "Scene":
        try:
            self.serve()
            for name in ("office", "tracking", "solo", *WORKERS):
                self.hosts[name].run("git", "clone", "--quiet", self.repository, "openmed")
            self._mlflow()
            self._airflow()
            for name in WORKERS:
                self.start_worker(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.services.clear()
        for host in self.hosts.values():
            host.scrap()

    def start(self, service: str) -> None:
        """Starts a service that was killed."""
        {"postgres": self.start_postgres, "redis": self.start_redis, "mlflow": self._start_mlflow}.get(
            service, lambda: self._start_airflow(service)
        )()

    def on(self, name: str, *arguments: str, within_s: float = 600) -> str:
        """Runs Python with some arguments in the checkout of a machine and returns what it printed."""
        host = self.hosts[name]
        command = ["env", f"--chdir={host.home}/openmed", sys.executable, *arguments]
        return host.run(*command, variables=self.variables(name), within_s=within_s)

    def newest_versions(self) -> list[str]:
        """Returns the numbers of the registered versions, newest first."""
        listed = json.loads(self.on("solo", "-m", "pipeline.commands.app", "registry", "list", "--json"))
        return [each["version"] for each in listed]

    def told(self) -> str:
        """Says who the workers are, after a look from each at what it sees of the others.

        Raises:
            RuntimeError: One sees a folder or a process of another machine.
        """
        said = []
        for name in WORKERS:
            host, others = self.hosts[name], [f"/home/{each}" for each in self.hosts if each != name]
            user, machine = host.run("id", "-u"), host.run("hostname")
            users = set(host.run("ps", "-eo", "user=").split())
            seen = host.run("bash", "-c", 'ls -d "$@" 2>/dev/null || true', "ls", str(self.folder), *others)
            if machine != name or users - {name, "root"} or seen:
                raise RuntimeError(f"{name} is not alone: {machine}, {users}, {seen}")
            said.append(f"{machine} (user {user}, a home and processes of its own)")
        return " and ".join(said)

    def variables(self, name: str) -> dict[str, str]:
        """Returns the environment of a machine that has a checkout."""
        home = self.hosts[name].home
        return {
            "OPENMED_PROJECT": str(home / "openmed"),
            "OPENMED_HOME": str(home / "state"),
            "PYTHONPATH": f"{home}/openmed:{EXTRA}",
            "OPENMED_SITE_SECRET": self.password["site"],
            "OPENMED_RECORD_REMOTE": self.repository,
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password.get("mlflow", ""),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "NO_PROXY": "127.0.0.1,localhost",
            **self._storage_variables(),
        }

    def _storage_variables(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "two-hosts",
            "AWS_SECRET_ACCESS_KEY": "two-hosts",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }

    def _mlflow(self) -> None:
        self._start_mlflow()
        file = self.hosts["tracking"].disk / "state" / "mlflow" / "passwords.json"
        self.password["mlflow"] = json.loads(file.read_text())["admin"]

    def _start_mlflow(self) -> None:
        own = {"MLFLOW_TRACKING_URI": self.database("mlflow"), "MLFLOW_ARTIFACTS_DESTINATION": "s3://models"}
        port, variables = self.port["mlflow"], self.variables("tracking") | own
        server = [sys.executable, "-m", "pipeline.tracking.server", str(port)]
        self.spawn("mlflow", "tracking", *server, variables=variables)
        until(lambda: answers(f"http://127.0.0.1:{port}/health"), "mlflow")

    def airflow_variables(self, name: str) -> dict[str, str]:
        """Returns the environment of a machine that runs a part of Airflow."""
        home, url = self.hosts[name].home, f"http://127.0.0.1:{self.port['airflow']}"
        settings = {
            "core__executor": "CeleryExecutor",
            "core__dags_folder": f"{home}/openmed/dags",
            "core__load_examples": "False",
            "core__parallelism": "8",
            "core__dags_are_paused_at_creation": "False",
            "core__execution_api_server_url": f"{url}/execution/",
            "database__sql_alchemy_conn": self.database("airflow"),
            "celery__broker_url": f"redis://:{self.password['redis']}@127.0.0.1:{self.port['redis']}/0",
            "celery__result_backend": self.database("airflow", "db+postgresql+psycopg2"),
            "celery__worker_concurrency": "1",
            "logging__base_log_folder": f"{home}/logs",
            "logging__remote_logging": "True",
            "logging__remote_base_log_folder": "s3://logs/tasks",
            "api__base_url": url,
            "api__secret_key": self.secret["session"],
            "api_auth__jwt_secret": self.secret["jwt"],
            "workers__max_failed_heartbeats": "300",
            "workers__min_heartbeat_interval": "1",
            "scheduler__task_instance_heartbeat_timeout": "60",
            # A task that a worker was taking when the database went stays queued for that long.
            "scheduler__task_queued_timeout": "300",
            "scheduler__task_queued_timeout_check_interval": "30",
            "dag_processor__refresh_interval": "10",
            "dag_processor__min_file_process_interval": "30",
        }
        return {
            **self.variables(name),
            "AIRFLOW_HOME": f"{home}/airflow",
            "OPENMED_SCHEDULE": "off",
            "OPENMED_GPU_QUEUE": QUEUES[1],
            "OPENMED_OUTAGE_MINUTES": "8",
            "OPENMED_AIRFLOW_URL": url,
            "OPENMED_AIRFLOW_USER": AUDITOR,
            "OPENMED_AIRFLOW_PASSWORD": self.password.get("auditor", ""),
            **{f"AIRFLOW__{key.upper()}": value for key, value in settings.items()},
        }

    def _airflow(self) -> None:
        users = {"admin": "admin", "reviewer": "user", "engineer": "user", AUDITOR: "viewer"}
        self.password |= {user: secrets.token_urlsafe(18) for user in users}
        office = self.hosts["office"]
        words = json.dumps({user: self.password[user] for user in users})
        office.run("bash", "-c", 'printf %s "$WORDS" >passwords.json', variables={"WORDS": words})
        self._users = {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{u}:{r}" for u, r in users.items()),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(office.home / "passwords.json"),
        }
        airflow = [sys.executable, "-m", "airflow"]
        office.run(*airflow, "db", "migrate", variables=self.airflow_variables("office"))
        for part in ("api-server", "scheduler", "dag-processor", "triggerer"):
            self._start_airflow(part)
        until(self._healthy, "airflow")
        for pool, slots in (("gpu", 3), ("registry", 1)):
            description = {"name": pool, "slots": slots, "include_deferred": False}
            self.client().request("POST", "pools", description)
        for dag in ("retrain", "promote"):
            until(lambda dag=dag: self.client().request("GET", f"dags/{dag}/details"), f"DAG {dag}")

    def _start_airflow(self, part: str) -> None:
        options = {
            "api-server": ["-H", "127.0.0.1", "-p", str(self.port["airflow"]), "-w", "1"],
            "scheduler": ["--skip-serve-logs"],
            "triggerer": ["--skip-serve-logs"],
        }.get(part, [])
        variables = self.airflow_variables("office") | self._users
        self.spawn(part, "office", sys.executable, "-m", "airflow", part, *options, variables=variables)

    def _healthy(self) -> None:
        health = AirflowClient(f"http://127.0.0.1:{self.port['airflow']}", "admin", "", 5).health()
        for part in ("metadatabase", "scheduler", "dag_processor", "triggerer"):
            if (health.get(part) or {}).get("status") != "healthy":
                raise ResourceError(f"{part} is not healthy")

    def client(self, user: str = "admin") -> AirflowClient:
        """Returns a client that acts as one of Airflow's users."""
        return AirflowClient(f"http://127.0.0.1:{self.port['airflow']}", user, self.password[user])

    def start_worker(self, name: str) -> None:
        """Starts the worker of a machine, and returns when it takes tasks."""
        before = self._ready(name)
        worker = [sys.executable, "-m", "pipeline.local.celery_worker", "--celery-hostname", name]
        queues = ["--queues", ",".join(QUEUES), "--skip-serve-logs"]
        variables = self.airflow_variables(name)
        self.spawn(name, name, *worker, *queues, variables=variables)
        until(lambda: _must(self._ready(name) > before), f"worker {name}")

    def _ready(self, name: str) -> int:
        return self.hosts[name].log(name).count(" ready.") if name in self._commands else 0


def answers(url: str) -> None:
    import httpx

    httpx.get(url, timeout=5, trust_env=False).raise_for_status()


def _must(fact: bool) -> None:
    if not fact:
        raise RuntimeError("not yet")
