"""A retraining on the two hosts, watched from outside, and what it left: films, models, entries, bits."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from openmed.errors import ResourceError
from pipeline.tools.airflow_client import AirflowClient
from tests.two_hosts.scene import Scene

WITHIN_S = 3000
_ENDED = ("success", "failed", "upstream_failed", "skipped")
_MANIFEST = "artifacts/validate/summary.json"


@dataclass(frozen=True)
class Left:
    """What a retraining left.

    Attributes:
        films: How many films `validate` measured.
        outputs: Output of a stage -> its hash in dvc.lock.
        metrics: File of metrics -> its content.
        weights: Architecture -> SHA-256 of its weights, as the object storage gives them back; those made
            on one machine as they lie on its disk.
    """

    films: int
    outputs: dict[str, str]
    metrics: dict[str, object]
    weights: dict[str, str] = field(default_factory=dict)


class Run:
    """One run of the DAG retrain."""

    def __init__(self, scene: Scene, name: str, **conf: object) -> None:
        """Starts it."""
        self.scene, self.name = scene, name
        self._client = patient(scene.client())
        self._client.trigger("retrain", {"accept_drift": True, "note": name, **conf}, name)

    def tasks(self) -> dict[str, dict]:
        """Returns what Airflow knows of each task; nothing while it does not answer."""
        try:
            return {each["task_id"]: each for each in self._client.task_instances("retrain", self.name)}
        except ResourceError:
            return {}

    def wait_for(self, what: str, fact: Callable[[dict[str, dict]], object], within_s: float = 900):
        """Waits until something is true of the tasks, and returns it.

        Raises:
            RuntimeError: It did not become true, or the run ended before.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            tasks = self.tasks()
            if found := fact(tasks):
                return found
            if tasks and all(each["state"] in _ENDED for each in tasks.values()):
                raise RuntimeError(f"run {self.name} ended before {what}: {self.problem()}")
            time.sleep(0.5)
        raise RuntimeError(f"run {self.name}: {what} did not happen within {within_s:g} s")

    def running(self, kind: str) -> dict | None:
        """Returns a task of a kind, such as `train`, that runs now."""
        of_kind = (each for name, each in self.tasks().items() if name.partition(".")[0] == kind)
        return next((each for each in of_kind if each["state"] == "running"), None)

    def where(self) -> str:
        """Says how many tasks ran on which host."""
        hosts = [each["hostname"] for each in self.tasks().values()]
        return " and ".join(f"{hosts.count(name)} tasks on {name}" for name in sorted({*hosts}))

    def end(self) -> None:
        """Waits for its end.

        Raises:
            RuntimeError: It failed; the message has the last lines of what did.
        """
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            try:
                state = self._client.run_state("retrain", self.name)
            except ResourceError:
                state = None
            if state == "success":
                return
            if state == "failed":
                raise RuntimeError(f"run {self.name} failed: {self.problem()}")
            time.sleep(1)
        raise RuntimeError(f"run {self.name} took longer than {WITHIN_S} s")

    def problem(self) -> str:
        """Returns the last lines of the first task that failed."""
        failed = [each for each in self.tasks().values() if each["state"] == "failed"]
        if not failed:
            return "no task failed"
        first = min(failed, key=lambda each: each["end_date"] or "")
        log = self.log(first["task_id"], first["try_number"])
        return f"{first['task_id']} on {first['hostname']}: " + " | ".join(log.splitlines()[-6:])

    def log(self, task: str, attempt: int) -> str:
        """Returns what one attempt of a task logged."""
        return self._client.task_log("retrain", self.name, task, attempt)

    def left(self) -> Left:
        """Returns what it left, asked of Airflow, MLflow and the object storage."""
        outputs, metrics = {}, {}
        for task in self.tasks():
            handed = self._handed(task)
            outputs |= _outputs(handed.get("lock") or {})
            metrics |= handed.get("metrics") or {}
        return Left(metrics[_MANIFEST]["films"], outputs, metrics, self._weights())

    def _handed(self, task: str) -> dict:
        try:
            value = self._client.xcom("retrain", self.name, task)
        except ResourceError:
            return {}
        return value if isinstance(value, dict) else {}

    def _weights(self) -> dict[str, str]:
        """Architecture -> hash of the weights that its version has in the object storage."""
        models, s3, keys = versions(self.scene, self.name), self.scene.s3(), self.scene.stored_weights()
        found = {}
        for architecture, model in models.items():
            for key in (key for key in keys if model in key):
                body = s3.get_object(Bucket="models", Key=key)["Body"]
                found[architecture] = hashlib.file_digest(body, "sha256").hexdigest()
        return found


def patient(client: AirflowClient) -> AirflowClient:
    """Returns a client that has logged in."""
    client.health()
    return client


def versions(scene: Scene, run: str) -> dict[str, str]:
    """Returns architecture -> id of the model that a run has registered, of versions that are ready."""
    told = scene.on("solo", "-c", _VERSIONS, run)
    return json.loads(told.splitlines()[-1])


_VERSIONS = """
import json, sys
from pipeline.tracking.store import connect, search
with connect() as client:
    found = list(search(client, f"name = 'openmed-cxr' and tags.run_key = '{sys.argv[1]}'"))
ready = [each for each in found if each.status == "READY"]
print(json.dumps({each.tags["architecture"]: each.source.rpartition("/")[2] for each in ready}))
"""


def on_one_machine(scene: Scene) -> Left:
    """Runs `dvc repro` on a machine alone and returns what it left."""
    host = scene.hosts["solo"]
    own = scene.variables("solo") | {"MLFLOW_TRACKING_URI": "", "OPENMED_RECORD_REMOTE": ""}
    checkout = f"{host.home}/openmed"
    for command in (["pull", "data.dvc"], ["repro"]):
        told = ["env", f"--chdir={checkout}", sys.executable, "-m", "dvc", *command]
        host.run(*told, variables=own, within_s=WITHIN_S)
    folder = host.disk / "openmed"
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    outputs: dict[str, str] = {}
    for entry in lock.values():
        outputs |= _outputs(entry)
    metrics = {path: json.loads((folder / path).read_text()) for path in outputs if path.endswith(".json")}
    models = (folder / "artifacts" / "evaluate").glob("*/model/weights.safetensors")
    weights = {path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest() for path in models}
    return Left(metrics[_MANIFEST]["films"], outputs, metrics, weights)


def _outputs(entry: dict) -> dict[str, str]:
    return {each["path"]: each["md5"] for each in entry.get("outs", [])}


def entries(scene: Scene) -> list[str]:
    """Returns the commits of the record of decisions, as the git remote has them, the first first."""
    folder = scene.hosts["git"].disk / "openmed.git"
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), "rev-list", "--reverse", "openmed-record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split()
