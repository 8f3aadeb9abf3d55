"""The nine faults: what each does to a retraining, and what it may not take away."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.two_hosts.retraining import Run, entries
from tests.two_hosts.scene import Scene
from tests.two_hosts.servers import WORKERS

# Where a training leaves its newest state.
_STATES = "dvc/openmed/states/"
_GONE_S, _HANGS_S, _REFUSES_S = 30, 60, 300


def worker_killed(scene: Scene) -> tuple[list[Run], str]:
    """Cuts the power of the host on which a training runs, as soon as it has left a state to go on from."""
    run = Run(scene, "worker-killed", force=True)

    def with_state(_: object) -> dict | None:
        kept = scene.s3().list_objects_v2(Bucket="films", Prefix=_STATES).get("Contents", [])
        names = {each["Key"].removeprefix(_STATES) for each in kept}
        training = (each for each in run.tasks().values() if each["state"] == "running")
        # `newest.json` is written last.
        stage = "{}/{}/newest.json".format
        own = (each for each in training if stage(run.name, each["task_id"].replace(".", "@")) in names)
        return next(own, None)

    task = run.wait_for("a state of a training", with_state)
    scene.cut(task["hostname"])
    run.end()
    after = run.tasks()[task["task_id"]]
    lines = run.log(task["task_id"], after["try_number"]).splitlines()
    scene.hosts[task["hostname"]].on()
    scene.start_worker(task["hostname"])
    if not any("goes on from the state" in line for line in lines):
        raise RuntimeError(f"{task['task_id']} began again on {after['hostname']}: {' | '.join(lines[-5:])}")
    cut = f"{task['task_id']} cut off on {task['hostname']}"
    return [run], f"{cut} went on from its last state on {after['hostname']}"


def broker_gone(scene: Scene) -> tuple[list[Run], str]:
    """Kills the broker while messages wait in its queues."""
    run = Run(scene, "broker-gone", force=True)
    waiting = run.wait_for("a message in a queue", lambda _: scene.queued())
    scene.kill("redis")
    time.sleep(_GONE_S)
    scene.start("redis")
    run.end()
    return [run], f"{waiting} queued when the broker went for {_GONE_S} s"


def database_restarted(scene: Scene) -> tuple[list[Run], str]:
    """Kills the database of Airflow and MLflow in a training and starts it again."""
    run = Run(scene, "database-restarted", force=True)
    task = run.wait_for("a training", lambda _: run.running("train"))
    before = len(scene.restarts)
    scene.kill("postgres")
    scene.start("postgres")
    run.end()
    ended = sorted({*scene.restarts[before:]})
    return [run], f"in {task['task_id']}; {' and '.join(ended) or 'nothing'} ended with it and came again"


def tracking_killed(scene: Scene) -> tuple[list[Run], str]:
    """Kills the tracking server in a registration, when the weights of the first version have arrived."""
    run, before = Run(scene, "tracking-killed"), scene.stored_weights()
    run.wait_for("the registration", lambda _: run.running("register"))
    arrived = run.wait_for("the first weights", lambda _: scene.stored_weights() - before)
    scene.kill("mlflow")
    time.sleep(_GONE_S)
    scene.start("mlflow")
    run.end()
    tries = run.tasks()["register"]["try_number"]
    return [run], f"with {len(arrived)} of 2 models stored, for {_GONE_S} s; registered at try {tries}"


def storage_away(scene: Scene) -> tuple[list[Run], str]:
    """Lets the object storage hang, and then refuse all connections."""
    run = Run(scene, "storage-away")
    run.wait_for("a stage", lambda _: run.running("preprocess"))
    scene.door.hang(_HANGS_S)
    scene.door.refuse(_REFUSES_S)
    run.end()
    tries = sum(each["try_number"] - 1 for each in run.tasks().values())
    return [run], f"{_HANGS_S} s without an answer, then {_REFUSES_S} s refused; {tries} tries repeated"


def disk_full(scene: Scene) -> tuple[list[Run], str]:
    """Fills the disk of one host before a retraining."""
    rest = scene.hosts["beta"].disk / "tmp" / "rest"
    _fill(rest)
    try:
        run = Run(scene, "disk-full")
        run.end()
    finally:
        rest.unlink()
    tries = sum(each["try_number"] - 1 for each in run.tasks().values())
    return [run], f"on beta; {tries} tries repeated"


def two_retrainings(scene: Scene) -> tuple[list[Run], str]:
    """Starts two retrainings at the same moment."""
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda name: Run(scene, name), ("first-of-two", "second-of-two")))
    for run in runs:
        run.end()
    return runs, "started at the same moment"


def two_decisions(scene: Scene) -> tuple[list[Run], str]:
    """Lets both hosts decide at the same moment, on two versions, again and again."""
    held = sorted(scene.newest_versions())[:2]
    before, rounds, refused = len(entries(scene)), 0, []
    for decision in ("hold", "release", "hold", "release"):
        start = threading.Barrier(2)

        def decide(verb: str, start: threading.Barrier, host: str, version: str) -> None:
            command = ["-m", "pipeline.commands.app", "registry", verb, version, "--by", f"Dr {host}"]
            start.wait()
            scene.on(host, *command, "--reason", "two hosts decide at once")

        pairs = zip(WORKERS, held, strict=True)
        with ThreadPoolExecutor(2) as pool:
            for each in [pool.submit(decide, decision, start, *pair) for pair in pairs]:
                if error := each.exception():
                    refused.append(str(error))
        rounds += 1
    made = len(entries(scene)) - before
    if made + len(refused) != 2 * rounds:
        raise RuntimeError(f"{2 * rounds} decisions, {len(refused)} refused, but {made} entries: {refused}")
    if refused:
        raise RuntimeError(f"refused: {refused[0]}")
    return [], f"{2 * rounds} decisions, {made} entries"


def scheduler_killed(scene: Scene) -> tuple[list[Run], str]:
    """Kills the scheduler in a training."""
    run = Run(scene, "scheduler-killed", force=True)
    task = run.wait_for("a training", lambda _: run.running("train"))
    scene.kill("scheduler")
    time.sleep(_GONE_S)
    scene.start("scheduler")
    run.end()
    return [run], f"in {task['task_id']}, for {_GONE_S} s"


FAULTS: dict[str, Callable[[Scene], tuple[list[Run], str]]] = {
    "a host loses its power in a training": worker_killed,
    "the broker is killed with messages queued": broker_gone,
    "Postgres is killed and started again": database_restarted,
    "the tracking server is killed in a registration": tracking_killed,
    "the object storage hangs and refuses": storage_away,
    "the disk of one host is full": disk_full,
    "two retrainings at once": two_retrainings,
    "two hosts decide at once": two_decisions,
    "the scheduler is killed": scheduler_killed,
}


def _fill(file: Path) -> None:
    """Writes until the disk is full."""
    with file.open("wb") as stream:
        try:
            while True:
                stream.write(bytes(1 << 20))
        except OSError:
            pass
