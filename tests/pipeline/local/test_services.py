"""The local services: their settings, their client, and once the real thing."""

import configparser
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psutil
import pytest

from openmed.errors import BadInput, ResourceError
from pipeline.local.services import Services, up
from pipeline.settings.variables import SECRETS
from pipeline.tools import airflow_client
from pipeline.tools.airflow_client import DATASET, AirflowClient, running_airflow
from pipeline.tools.processes import take_lock
from tests.airflow_runs import decide, wait_for_run
from tests.conftest import answered

ROOT = Path(__file__).parents[3]


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class Answers(BaseHTTPRequestHandler):
    """Says what the test put under (method, path) and writes down what it was asked."""

    table: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.asked.append((self.command, self.path, body, self.headers.get("Authorization")))
        code, content = self.table.get((self.command, self.path), (404, {"detail": "not\nfound"}))
        if isinstance(content, list) and content and content[0] == "one after another":
            content = content.pop(1) if len(content) > 2 else content[1]
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Answers.table, Answers.asked = {("POST", "/auth/token"): (201, {"access_token": "T"})}, []
    http = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join(5)


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setattr(airflow_client, "_ANSWER_AFTER_S", 0.0)
    return AirflowClient(f"http://127.0.0.1:{server.server_port}/", "admin", "secret")


def say(method: str, path: str, content, code: int = 200) -> None:
    Answers.table[method, f"/api/v2/{path}"] = (code, content)


def test_the_client_logs_in_once_and_sends_its_token(client):
    say("GET", "dags/d/dagRuns/a%3Ab", {"state": "running"})
    assert client.run_state("d", "a:b") == client.run_state("d", "a:b") == "running"
    assert [each[1] for each in Answers.asked].count("/auth/token") == 1
    assert Answers.asked[0][2] == {"username": "admin", "password": "secret"}
    assert Answers.asked[-1][3] == "Bearer T"


def test_a_run_is_started_without_a_logical_date(client):
    say("POST", "dags/d/dagRuns", {"dag_run_id": "r"})
    assert client.trigger("d", {"seed": 1}) == "r"
    assert Answers.asked[-1][2] == {"logical_date": None, "conf": {"seed": 1}, "dag_run_id": None}


def test_what_airflow_refuses_is_one_sentence(client):
    with pytest.raises(ResourceError, match="Airflow answered 404 to GET") as refusal:
        client.runs("nowhere")
    assert "\n" not in str(refusal.value)
    gone = AirflowClient("http://127.0.0.1:9", "admin", "secret", timeout_s=2)
    with pytest.raises(ResourceError, match="does not answer at"):
        gone.health()


def test_runs_tasks_logs_and_xcoms_are_read(client):
    say("GET", "dags/d/dagRuns?order_by=run_after&limit=100", {"dag_runs": [{"dag_run_id": "r"}]})
    tasks = [{"task_id": "a", "state": "success"}, {"task_id": "b", "state": None}]
    say("GET", "dags/d/dagRuns/r/taskInstances?limit=1000", {"task_instances": tasks})
    failure = {"event": "failed", "error_detail": [{"exc_type": "BadInput", "exc_value": "why"}]}
    log = {"content": [{"event": "one"}, failure, "two"]}
    say("GET", "dags/d/dagRuns/r/taskInstances/a/logs/1?full_content=true", log)
    say(
        "GET",
        "dags/d/dagRuns/r/taskInstances/a/xcomEntries/k?deserialize=false&stringify=false",
        {"value": 1},
    )
    assert client.runs("d") == [{"dag_run_id": "r"}]
    assert client.task_states("d", "r") == {"a": "success", "b": None}
    assert client.task_log("d", "r", "a") == "one\nfailed BadInput: why\ntwo"
    assert client.xcom("d", "r", "a", "k") == 1


def test_who_responded_is_read_for_each_task_of_a_run(client):
    details = [{"task_instance": {"task_id": task}, "response_received": task == "a"} for task in "ab"]
    say("GET", "dags/d/dagRuns/r/hitlDetails?limit=100", {"hitl_details": details, "total_entries": 2})
    assert client.responses("d", "r") == {"a": details[0], "b": details[1]}


def test_dags_tasks_and_assets_are_changed(client):
    say("PATCH", "dags/d", {})
    found = [{"id": 4, "name": "openmed_dataset_2"}, {"id": 5, "name": "openmed_dataset"}]
    say("GET", "assets?name_pattern=openmed_dataset", {"assets": found})
    say("GET", "assets?name_pattern=absent", {"assets": []})
    say("POST", "assets/events", {})
    client.set_paused("d", True)
    assert Answers.asked[-1][2] == {"is_paused": True}
    client.emit("openmed_dataset", {"md5": "x"})
    started_by = sorted({"admin", pwd.getpwuid(os.getuid()).pw_name})
    assert Answers.asked[-1][2] == {"asset_id": 5, "extra": {"md5": "x", "started_by": started_by}}
    with pytest.raises(BadInput, match="no asset 'absent'"):
        client.emit("absent")


def test_a_question_is_answered_again_when_it_is_asked_again(client):
    task = {"dag_id": "d", "dag_run_id": "r", "task_id": "review", "map_index": -1, "state": "awaiting_input"}
    others = [{**task, "dag_run_id": "other"}, {**task, "state": "success"}]
    found = {"hitl_details": [{"task_instance": each} for each in (*others, task)]}
    say("GET", "dags/~/dagRuns/~/hitlDetails?response_received=false&limit=100", found)
    say("PATCH", "dags/d/dagRuns/r/taskInstances/review/-1/hitlDetails", {})
    states = [{"state": "running"}, {"state": "running"}, {"state": "success"}]
    say("GET", "dags/d/dagRuns/r", ["one after another", *states])
    assert decide(client, "d", "r", "Approve", "fine", timeout_s=20) == "success"
    answers = [body for method, path, body, _ in Answers.asked if path.endswith("/-1/hitlDetails")]
    assert answers == [{"chosen_options": ["Approve"], "params_input": {"comment": "fine"}}] * 2
    say("GET", "dags/d/dagRuns/r", {"state": "running"})
    for wait in (
        lambda: wait_for_run(client, "d", "r", 0.1),
        lambda: decide(client, "d", "r", "Approve", None, 0.1),
    ):
        with pytest.raises(TimeoutError, match=r"after 0\.1 s"):
            wait()
    say("GET", "dags/d/dagRuns/r", {"state": "failed"})
    assert wait_for_run(client, "d", "r", 5) == "failed"


def test_settings_stay_on_loopback_and_secrets_are_for_the_owner_alone(tmp_path):
    made = Services(ROOT, tmp_path, schedule="off", gpu_slots=2)
    made._settings.write()
    first = made.passwords()["admin"]
    config = configparser.RawConfigParser()
    config.read(tmp_path / "airflow" / "airflow.cfg")
    assert config["api"]["host"] == "127.0.0.1" and made.airflow_url.startswith("http://127.0.0.1:")
    assert config["core"]["load_examples"] == "False"
    users = dict(each.split(":") for each in config["core"]["simple_auth_manager_users"].split(","))
    assert users == {"admin": "admin", "reviewer": "user", "engineer": "user", "auditor": "viewer"}
    assert set(made.passwords()) == set(users)
    assert len(config["api_auth"]["jwt_secret"]) >= 64
    for name in ("airflow.cfg", "passwords.json", "secrets.json"):
        assert stat.S_IMODE((tmp_path / "airflow" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "airflow").stat().st_mode) == 0o700
    Services(ROOT, tmp_path)._settings.write()
    assert made.passwords()["admin"] == first and len(first) >= 20
    environment = made._settings.environment()
    assert environment["OPENMED_SCHEDULE"] == "off" and environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert first not in environment.values()


def test_a_copied_state_folder_does_not_speak_to_the_airflow_of_the_original(server, tmp_path):
    home = tmp_path / "home é 100%"
    Services(ROOT, home, airflow_port=server.server_port, mlflow_port=None)._settings.write()
    Answers.table["GET", "/api/v2/monitor/health"] = (200, {})
    assert running_airflow(home).health() == {}
    shutil.copytree(home, tmp_path / "copy")
    asked = len(Answers.asked)
    assert running_airflow(tmp_path / "copy") is None
    assert len(Answers.asked) == asked


@pytest.mark.parametrize("name", ["Europe/Viena", "../etc", "/etc/passwd"])
def test_a_time_zone_that_is_none_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.setenv("OPENMED_TIMEZONE", name)
    with pytest.raises(BadInput, match=f"OPENMED_TIMEZONE is {name}, which is no time zone"):
        Services(ROOT, tmp_path)._settings.write()


def test_secrets_reach_components_as_files_and_never_in_their_environment(tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, f"hidden {name}")
    settings = Services(ROOT, tmp_path)._settings
    settings.write()
    environment = settings.environment()
    assert not [value for value in environment.values() if "hidden" in value]
    for name in SECRETS:
        file = Path(environment[f"{name}_FILE"])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_text() == f"hidden {name}"
    code = "from pipeline.settings.variables import variables as v; print(v().site_secret.get_secret_value())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "hidden OPENMED_SITE_SECRET\n"
    # Airflow's and MLflow's own secrets stand in files alone as well.
    written = json.loads((tmp_path / "airflow" / "secrets.json").read_text()) | json.loads(
        settings.password_file.read_text()
    )
    assert not set(written.values()) & set(environment.values())


def test_the_environment_of_a_component_keeps_its_calls_from_a_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.hospital:3128")
    monkeypatch.setenv("NO_PROXY", "pacs.hospital")
    environment = Services(ROOT, tmp_path)._settings.environment()
    assert environment["NO_PROXY"] == environment["no_proxy"] == "pacs.hospital,127.0.0.1,localhost"
    assert environment["HTTP_PROXY"] == "http://proxy.hospital:3128"


def test_another_airflow_in_the_environment_does_not_reach_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://production")
    environment = Services(ROOT, tmp_path)._settings.environment()
    assert not any(key.startswith("AIRFLOW__") for key in environment)
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "airflow")


def test_what_airflow_is_given_stands_in_its_file_for_the_owner_alone_and_in_no_environment(
    tmp_path, monkeypatch
):
    conn = f"sqlite:///{tmp_path}/p%40ssword.db"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", conn)
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET_CMD", "printf sh%%red-by-all")
    asked = {"database": {"sql_alchemy_conn": conn}, "api_auth": {"jwt_secret_cmd": "printf sh%%red-by-all"}}
    settings = Services(ROOT, tmp_path, given=asked)._settings
    settings.write()
    environment = settings.environment()
    assert not [value for value in environment.values() if "p%40ssword" in value]
    file = tmp_path / "airflow" / "airflow.cfg"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    code = (
        "from airflow.configuration import conf\n"
        "print(conf.get('database', 'sql_alchemy_conn'), conf.get('api_auth', 'jwt_secret'))\n"
        "print(conf.get('core', 'executor'), conf.getint('workers', 'max_failed_heartbeats'))\n"
        "print(conf.getint('scheduler', 'num_stuck_in_queued_retries'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{conn} sh%red-by-all", "LocalExecutor 300", "8"]


def test_no_mlflow_is_started_where_another_one_keeps_the_models(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.hospital:5000")
    assert Services(ROOT, tmp_path, mlflow_port=5000).mlflow_url is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert Services(ROOT, tmp_path, mlflow_port=5000).mlflow_url == "http://127.0.0.1:5000"


def test_services_of_one_home_run_once_and_a_taken_port_is_named(tmp_path):
    holder = take_lock(tmp_path)
    with pytest.raises(ResourceError, match="are running already"):
        Services(ROOT, tmp_path).start()
    holder.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} is taken"):
            Services(ROOT, tmp_path, airflow_port=port, mlflow_port=None).start()


def test_a_component_that_ends_at_its_start_is_named_with_its_log(tmp_path):
    broken = Services(ROOT, tmp_path, mlflow_port=None)
    broken.logs.mkdir()
    broken._spawn("scheduler", "no_such_module")
    with pytest.raises(ResourceError, match=r"scheduler ended with 1 at its start; see .*scheduler\.log"):
        broken.wait_healthy(30)
    broken.stop()
    assert broken.mlflow_url is None


def test_what_does_not_get_healthy_is_named_and_stopped_by_force(tmp_path):
    slow = Services(ROOT, tmp_path)
    slow.logs.mkdir()
    (tmp_path / "deaf.py").write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(300)']\n"
        "child = subprocess.Popen(sleep, start_new_session=True)\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(300)\n"
    )
    slow._spawn("scheduler", "deaf")
    with pytest.raises(ResourceError, match="mlflow, airflow not healthy after 1 s"):
        slow.wait_healthy(1)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)
    pid = slow._processes["scheduler"].pid
    slow.stop(within_s=0.5)
    assert not is_alive(pid) and not is_alive(int((tmp_path / "child").read_text()))


def test_a_database_that_cannot_be_made_is_one_sentence(tmp_path):
    made = Services(ROOT, tmp_path, mlflow_port=None)
    made.logs.mkdir()
    made._settings.write()
    (tmp_path / "airflow" / "airflow.db").mkdir()
    with pytest.raises(ResourceError, match=r"database could not be made \(exit 1\); see"):
        made._settings.migrate(made.logs / "migrate.log")


def test_up_stops_when_it_is_told_to(tmp_path, monkeypatch, capsys):
    calls = []
    # Those of the tests of the DAGs, which may run in this process too.
    for name in [name for name in os.environ if name.startswith("AIRFLOW__")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "9")
    monkeypatch.setattr(Services, "start", lambda self: calls.append("start") or self)
    monkeypatch.setattr(Services, "stop", lambda self: calls.append("stop"))
    monkeypatch.setattr(Services, "wait_healthy", lambda self, timeout_s, stopped: 1.0)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    up(ROOT, tmp_path)
    assert calls == ["start", "stop"] and signal.getsignal(signal.SIGTERM) is before
    said = capsys.readouterr().out
    assert "http://127.0.0.1:" in said and "passwords.json" in said
    assert said.startswith("Taken from the environment: AIRFLOW__CORE__PARALLELISM.\n")


REGISTRY = """
from types import SimpleNamespace
def register_candidates(workspace, *, run_key, revision, started_by):
    assert (workspace / "artifacts/train/vit/metrics.json").exists()
    assert (workspace / "artifacts/drift/drift.json").exists()
    chosen = {"version": "7", "architecture": "vit", "verdict": "PASS"}
    return SimpleNamespace(**chosen, order=["7"], run_id="r")
def is_read(out):
    return True
"""
PROMOTION = """
from pipeline.ledger import Entry
from pipeline.promotion.judgement import Judgement
def judge_in_turn(versions, *, workspace):
    assert workspace and (workspace / "dvc.lock").exists()
    judged = Judgement(
        version=versions[0], architecture="vit", model_sha256="0", champion=None, verdict="PASS", grounds="",
        gates=[], comparison=[], note="", films_compared=0, films_left_out=0, limits=[],
        reviewers={"clinical": "Reads films.", "technical": "Runs the pipeline."}, started_by=None,
        films_markdown="", report=None, review=None, table_markdown="| gate |",
    )
    return judged, []
def check_starter(versions, by):
    assert by is None
def promote(version, *, approved_by, comment, answered_at, expected_champion, expected_model):
    assert answered_at.tzinfo
    said = {"by": "two people", "approvals": approved_by, "comment": comment}
    return Entry(1, "", "promoted", version, said, "")
"""
FILMS = """
def films_at_hand(project, home, version, *, at_any_rate):
    return next((home / "runs").glob("*/dvc.lock")).parent
"""
DRIFT = """
def check_drift(workspace, *, accept):
    assert (workspace / "artifacts/validate/metrics.json").exists()
    found = {"verdict": "none", "sentence": "Alike.", "judged": "whole", "champion": "6", "accepted": accept}
    return type("Result", (), {"to_json": lambda self: found})()
def restore_drift(workspace, content):
    assert content["sentence"] == "Alike."
    (workspace / "artifacts/drift").mkdir()
    (workspace / "artifacts/drift/drift.json").write_text("{}")
"""
TOY = """
stages:
  validate:
    cmd: python stage.py validate
    deps:
      - data
      - stage.py
    outs:
      - artifacts/validate
  train:
    matrix:
      architecture: ${architectures}
    cmd: python stage.py train/${item.architecture}
    deps:
      - artifacts/validate
      - stage.py
    params:
      - run
    outs:
      - artifacts/train/${item.architecture}
"""
STAGE = """
import json, os, pathlib, sys, time, yaml
run = yaml.safe_load(open("params.yaml"))["run"]
folder = pathlib.Path("artifacts", sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
if run["seed"] == 99 and "train" in sys.argv[1]:
    pathlib.Path("training.pid").write_text(str(os.getpid()))
    print("working", flush=True)
    time.sleep(300)
(folder / "metrics.json").write_text(json.dumps({"seed": run["seed"]}))
"""


@pytest.fixture
def toy(tmp_path) -> Path:
    """A committed project with our DAGs, two stages, and a registry that remembers nothing."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    shutil.copytree(ROOT / "dags", project / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "openmed", project / "openmed", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings", "tools", "versioning", "tracking", "ledger"):
        shutil.copytree(ROOT / "pipeline" / name, project / "pipeline" / name)
    (project / "pipeline/promotion").mkdir()
    shutil.copy(ROOT / "pipeline/promotion/judgement.py", project / "pipeline/promotion")
    files = {
        "pipeline/__init__.py": "",
        "pipeline/registry/__init__.py": REGISTRY,
        "pipeline/promotion/__init__.py": "",
        "pipeline/promotion/actions.py": PROMOTION,
        "pipeline/promotion/films.py": FILMS,
        "pipeline/monitoring/__init__.py": "",
        "pipeline/monitoring/drift.py": DRIFT,
        "dvc.yaml": TOY,
        "params.yaml": "architectures: [resnet50, vit]\nrun:\n  seed: 1\n",
        "change_plan.yaml": "protocol: {reviewers: {clinical: Reads films., technical: Runs it.}}\n",
        "stage.py": STAGE,
        "data/film": "film",
        ".gitignore": "/data\n/artifacts\n__pycache__\n",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(textwrap.dedent(text))
    git = ["git", "-c", "user.name=Test", "-c", "user.email=test@localhost"]
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        [*git, "init", "-q"],
        [*dvc, "init", "-q"],
        [*dvc, "add", "data"],
        [*git, "add", "-A"],
        [*git, "commit", "-qm", "toy"],
    ):
        subprocess.run(command, cwd=project, check=True, capture_output=True)
    return project


@pytest.mark.long
@pytest.mark.timeout(600)
def test_from_retraining_over_the_review_to_promotion_and_a_kill(toy, tmp_path):
    # Nobody committed it: the clinical reviewer is asked all the same.
    (toy / "change_plan.yaml").write_text("protocol: {reviewers: {technical: Runs it.}}\n")
    with Services(toy, tmp_path / "home", mlflow_port=None, schedule="off") as running:
        running.wait_healthy(120)
        for dag_id in ("retrain", "promote"):
            running.wait_for_dag(dag_id)
        admin, *people = (running.client(user) for user in ("admin", "reviewer", "engineer"))
        run_id = admin.trigger("retrain", {"seed": 5})
        assert wait_for_run(admin, "retrain", run_id, 120) == "success"
        trained = admin.xcom("retrain", run_id, "train.vit")
        assert trained["lock"]["params"] == {"params.yaml": {"run": {"seed": 5}}}
        while not admin.runs("promote"):
            time.sleep(0.2)
        promotion = admin.runs("promote")[0]["dag_run_id"]
        assert answered(people, promotion) == "success"
        approved_by = {"clinical": "reviewer", "technical": "engineer"}
        entry = admin.xcom("promote", promotion, "promote")
        said = {"by": "two people", "approvals": approved_by, "comment": "clinical: fine"}
        assert (entry["version"], entry["content"]) == ("7", said)
        assert [run["run_type"] for run in admin.runs("promote")] == ["asset_triggered"]

        # `openmed data add` finds this Airflow by the state folder alone.
        running_airflow(tmp_path / "home").emit(DATASET, {"revision": "HEAD"})
        while not (by_data := [r for r in admin.runs("retrain") if r["run_type"] == "asset_triggered"]):
            time.sleep(0.3)
        assert wait_for_run(admin, "retrain", by_data[0]["dag_run_id"], 90) == "success"

        stuck = admin.trigger("retrain", {"seed": 99})
        training = wait_for_training(admin, stuck)
        (pid_file,) = (tmp_path / "home" / "runs").glob("*/training.pid")
        pid = int(pid_file.read_text())
        task = f"dags/retrain/dagRuns/{quote(stuck)}/taskInstances/{training}"
        admin.request("PATCH", task, {"new_state": "failed"})
        deadline = time.monotonic() + 15
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not is_alive(pid)
    assert running_airflow(tmp_path / "home") is None
    assert not [each for each in psutil.process_iter() if str(tmp_path) in environment_of(each)]


def environment_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.environ().get("OPENMED_HOME", "")
    return ""


def wait_for_training(client: AirflowClient, run_id: str) -> str:
    while True:
        states = client.task_states("retrain", run_id)
        running = [name for name, state in states.items() if name.startswith("train.") and state == "running"]
        if running and client.task_log("retrain", run_id, running[0]).count("working"):
            return running[0]
        time.sleep(0.3)
