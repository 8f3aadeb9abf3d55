"""A worker whose disk is full: it leaves the tasks to others."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.local.celery_worker import full_disk
from pipeline.tools.processes import kill

# A real worker, whose broker is a folder. Its disk has room while there is a file `room`.
APPLICATION = """
import threading, time
from pathlib import Path
from celery import Celery
from celery.signals import worker_ready
from pipeline.local.celery_worker import Intake, watch

folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
app = Celery("tasks", broker="filesystem://", broker_transport_options=folders | {"polling_interval": 0.01})
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True)

@app.task(name="write")
def write(name):
    Path(name).write_text("")

def room():
    if not Path("room").exists():
        return "the disk is full"

@worker_ready.connect
def ready(sender, **_):
    arguments = (Intake(sender), room, lambda: time.sleep(0.05))
    threading.Thread(target=watch, args=arguments, daemon=True).start()
"""


@pytest.fixture
def worker(tmp_path):
    """The folder of a worker that runs, and whose output is in `log`."""
    (tmp_path / "queue").mkdir()
    (tmp_path / "application.py").write_text(APPLICATION)
    command = [sys.executable, "-m", "celery", "-A", "application", "worker", "--pool", "solo"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--loglevel", "info"], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
    yield tmp_path
    kill([process])


def test_a_full_disk_is_named_with_what_is_free_and_what_is_wanted(tmp_path):
    assert full_disk([tmp_path], 0) is None
    assert full_disk([tmp_path / "gone", tmp_path], 1) is None
    said = full_disk([tmp_path], 1e12)
    assert said.endswith(f"MB are free at {tmp_path}, less than 1e+12 (OPENMED_LEAST_FREE_MB)")


def test_a_worker_takes_no_tasks_while_its_disk_is_full_and_takes_them_again_after(worker):
    until(lambda: "takes no tasks until there is room: the disk is full" in said(worker), worker)
    until(lambda: "Canceling queue celery" in said(worker), worker)
    send(worker, "first")
    time.sleep(1)
    assert not (worker / "first").exists()
    (worker / "room").write_text("")
    until((worker / "first").exists, worker)
    assert "There is room again: this worker takes tasks" in said(worker)
    (worker / "room").unlink()
    until(lambda: said(worker).count("Canceling queue celery") == 2, worker)
    send(worker, "second")
    time.sleep(1)
    assert not (worker / "second").exists(), said(worker)


def send(folder: Path, name: str) -> None:
    program = f"from application import write; write.delay({name!r})"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def until(fact, folder: Path, within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < end, said(folder)
        time.sleep(0.02)
