"""Airflow's Celery worker, which takes no tasks while a disk of its host is full.

A host whose disk is full fails each task at once, is the first to be idle again, and so would get all the
tries of a task.

    python -m pipeline.local.celery_worker ARGUMENTS-OF-AIRFLOW-CELERY-WORKER
"""

import runpy
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import worker_ready
from celery.utils.log import get_logger

from pipeline.settings.project import home, project_root
from pipeline.settings.variables import variables
from pipeline.versioning.workspace import cache_folder

_LOOKS_EACH_S = 5.0
LOG = get_logger(__name__)


def main() -> None:
    """Goes on as `python -m airflow celery worker`."""
    worker_ready.connect(_look, weak=False)
    sys.argv[1:1] = ["celery", "worker"]
    runpy.run_module("airflow", run_name="__main__", alter_sys=True)


def full_disk(folders: list[Path], least_mb: float) -> str | None:
    """Says which of the disks below some folders has less free space than `least_mb` megabytes."""
    for folder in folders:
        with suppress(OSError):
            free_mb = shutil.disk_usage(folder).free / 1e6
            if free_mb < least_mb:
                least = f"less than {least_mb:g} (OPENMED_LEAST_FREE_MB)"
                return f"{free_mb:.0f} MB are free at {folder}, {least}"
    return None


class Intake:
    """Whether a worker takes tasks from its queues.

    Args:
        consumer: Celery's, of a worker that is ready.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer, self._open = consumer, True
        self._queues = list(consumer.app.amqp.queues.consume_from.values())

    def set(self, open_: bool) -> None:
        """Takes tasks or stops it, now and after the broker was away; what runs, runs on."""
        self._open = open_
        self._consumer.call_soon(self._follow)

    def _follow(self) -> None:
        consumer, known = self._consumer, self._consumer.app.amqp.queues
        for queue in self._queues:
            if self._open and queue.name not in known.consume_from:
                # Celery's own `add_task_queue` forgets it when it connects anew.
                known.select_add(queue)
                consumer.add_task_queue(queue.name)
            elif not self._open and queue.name in known.consume_from:
                consumer.cancel_task_queue(queue.name)


def watch(intake: Intake, why_not: Callable[[], str | None], pause: Callable[[], bool]) -> None:
    """Holds the intake to whether there is room, until `pause` returns True."""
    said: str | None = None
    while True:
        reason = why_not()
        intake.set(reason is None)
        if reason and not said:
            LOG.warning("This worker takes no tasks until there is room: %s", reason)
        elif said and not reason:
            LOG.warning("There is room again: this worker takes tasks")
        said = reason
        if pause():
            return


def _look(sender: Any, **_: Any) -> None:
    least_mb = variables().least_free_mb
    folders = [home(), project_root(), cache_folder(project_root())]
    arguments = (Intake(sender), lambda: full_disk(folders, least_mb), lambda: time.sleep(_LOOKS_EACH_S))
    threading.Thread(target=watch, args=arguments, name="disks", daemon=True).start()


if __name__ == "__main__":
    main()
