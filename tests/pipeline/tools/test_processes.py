"""The services of a state folder are ended from another terminal, whatever became of who started them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from openmed.files import read_json, write_json
from pipeline.tools import processes as running
from pipeline.tools.processes import down, take_lock

# What `openmed up` does, with components that sleep instead of an Airflow that takes a minute to start.
UP = """
import sys
from pathlib import Path
from pipeline.local import services
from pipeline.local.services import Services, up

class Sleeping(Services):
    def start(self):
        self.logs.mkdir(exist_ok=True)
        self._take_lock()
        for name in ("scheduler", "triggerer"):
            self._spawn(name, "sleeping")
        return self
    def wait_healthy(self, timeout_s, stopped):
        return 0.0

services.Services = Sleeping
up(Path(sys.argv[1]), Path(sys.argv[2]), mlflow_port=None)
"""
SLEEPING = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
time.sleep(120)
"""
ROOT = Path(__file__).parents[3]


def usual_signals():
    """The tests themselves may run under nohup or in the background of a shell, which ignores these."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_alive(process):
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts `up` in a session of its own; gives its state folder, it, and the processes below it."""
    for name in [name for name in os.environ if name.startswith("AIRFLOW_")]:
        monkeypatch.delenv(name)  # tests of DAGs leave their worker some that `up` refuses
    home = tmp_path / "home"
    home.mkdir()
    (home / "sleeping.py").write_text(SLEEPING)
    begun = []

    def start(*before):
        command = [*before, sys.executable, "-c", UP, str(ROOT), str(home)]
        up = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=usual_signals,
            text=True,
        )
        while "Ready" not in up.stdout.readline():
            assert up.poll() is None
        while len(family := psutil.Process(up.pid).children(recursive=True)) < 4:
            time.sleep(0.05)
        begun.extend([psutil.Process(up.pid), *family])
        return home, up, family

    yield start
    for process in begun:
        with suppress(psutil.Error):
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_closed_terminal_leaves_nothing_behind(started, number):
    home, up, family = started()
    up.send_signal(number)
    assert up.wait(30) == 0
    assert not any(map(is_alive, family))
    assert down(home) == 0


def test_nohup_keeps_the_services_when_the_terminal_closes(started):
    home, up, family = started("nohup")
    up.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert up.poll() is None and all(map(is_alive, family))
    assert down(home) == 5


def test_down_ends_a_running_up(started):
    home, up, family = started()
    assert down(home) == 5
    assert up.wait(10) == 0 and not any(map(is_alive, family))


def test_down_ends_what_a_killed_up_left_and_so_does_not_the_next_up(started):
    home, up, family = started()
    up.kill()
    up.wait()
    command = [sys.executable, "-c", UP, str(ROOT), str(home)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "are running already: `openmed down` stops them" in second.stderr
    assert all(map(is_alive, family))
    assert down(home) == 4
    assert not any(map(is_alive, family))
    take_lock(home).close()


def test_nothing_is_ended_where_nothing_runs_and_a_number_belongs_to_another_process_now(tmp_path):
    assert down(tmp_path / "absent") == down(tmp_path) == 0 and not (tmp_path / "absent").exists()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    holder = take_lock(tmp_path)
    try:
        # As after a power cut: the record is of processes of before.
        write_json(tmp_path / "services.json", {"up": [other.pid, 1.0], "scheduler": [other.pid, 2.0]})
        assert running._recorded(tmp_path) == {}
        running.record(tmp_path, {"scheduler": other.pid})
        assert read_json(tmp_path / "services.json")["up"][0] == os.getpid()
        assert running._recorded(tmp_path)["scheduler"].pid == other.pid
    finally:
        holder.close()
        other.kill()
        other.wait()
