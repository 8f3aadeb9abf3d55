"""A worker of several hosts whose disk is full: who takes the tasks then."""

import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("celery") is None, reason="the extra `distributed` is not installed: `make distributed`"
)


@pytest.fixture
def app(tmp_path):
    """A Celery application whose broker is a folder, in reach of no other."""
    from celery import Celery

    made = Celery("tasks", broker="filesystem://", set_as_current=False)
    folder = str(tmp_path / "queue")
    Path(folder).mkdir()
    made.conf.broker_transport_options = {
        "data_folder_in": folder,
        "data_folder_out": folder,
        "control_folder": str(tmp_path / "control"),
        "polling_interval": 0.01,
    }
    made.conf.update(worker_prefetch_multiplier=1, task_acks_late=True, worker_enable_remote_control=False)
    return made


def test_a_full_disk_is_named_with_what_is_free_and_what_is_wanted(tmp_path):
    from pipeline.local.celery_worker import full_disk

    assert full_disk([tmp_path], 0) is None
    assert full_disk([tmp_path / "gone", tmp_path], 1) is None
    said = full_disk([tmp_path], 1e12)
    assert said.endswith(f"MB are free at {tmp_path}, less than 1e+12 (OPENMED_LEAST_FREE_MB)")


def test_a_worker_takes_no_tasks_while_its_disk_is_full_and_takes_them_again_after(app):
    from celery.contrib.testing.worker import start_worker

    from pipeline.local.celery_worker import Intake, watch

    ran, room, ended = [], threading.Event(), threading.Event()

    @app.task(name="note")
    def note(number):
        ran.append(number)

    with start_worker(app, pool="solo", perform_ping_check=False, queues=["celery"]) as worker:
        intake = Intake(worker.consumer)
        looks = (lambda: None if room.is_set() else "full", lambda: ended.wait(0.05))
        watching = threading.Thread(target=watch, args=(intake, *looks))
        watching.start()
        until(lambda: not app.amqp.queues.consume_from)
        note.delay(1)
        time.sleep(1)
        assert ran == []
        room.set()
        until(lambda: ran == [1])
        note.delay(2)
        until(lambda: ran == [1, 2])
        # A worker that connects to its broker anew takes what is selected here.
        assert list(app.amqp.queues.consume_from) == ["celery"]
        ended.set()
        watching.join()


def until(fact, within_s=20):
    end = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
