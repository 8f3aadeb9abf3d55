"""The compose files with workers: what holds of the services of one host holds of these too."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import jsonschema
import pytest
import yaml

from pipeline.settings.variables import Variables
from tests.docker.compose_files import VARIABLE, Override, loaded, merged
from tests.docker.test_docker import ONE_SHOT, SCHEMA, SECRET, example, megabytes, secrets_of
from tests.docker.test_make_secrets import DOCKER, contents, of_site, of_workers

FILES = ("compose.yaml", "compose.celery.yaml")
WHOLE = merged(*FILES, OPENMED_CPUS="2", OPENMED_MEMORY="8g")
SERVICES = WHOLE["services"]
BASE = loaded("compose.yaml")["services"]
WORKERS = {"worker": "default", "worker-gpu": "gpu"}
celery = pytest.mark.skipif(
    find_spec("celery") is None or find_spec("redis") is None,
    reason="the extra `distributed` is not installed: `make distributed`",
)


def test_both_files_together_are_what_the_compose_specification_calls_one():
    jsonschema.validate(WHOLE, SCHEMA)
    cuda = loaded("compose.celery.cuda.yaml")["services"]
    assert set(cuda) == {"worker-gpu"}
    assert cuda["worker-gpu"] == loaded("compose.cuda.yaml")["services"]["airflow-scheduler"]


def test_files_are_laid_over_each_other_as_compose_does():
    below = {"environment": {"a": "1", "b": "2"}, "secrets": ["x"], "command": ["old"], "networks": ["n"]}
    above = {"environment": {"b": "3"}, "secrets": ["y"], "command": ["new"], "networks": Override(["m"])}
    from tests.docker.compose_files import _laid

    assert _laid("", below, above) == {
        "environment": {"a": "1", "b": "3"},
        "secrets": ["x", "y"],
        "command": ["new"],
        "networks": ["m"],
    }


def test_every_reference_leads_somewhere():
    for name, settings in SERVICES.items():
        assert set(settings["networks"]) <= set(WHOLE["networks"]), name
        assert set(secrets_of(settings)) <= set(WHOLE["secrets"]), name
        assert set(settings.get("depends_on", {})) <= set(SERVICES), name
        volumes = {each.split(":")[0] for each in settings.get("volumes", []) if isinstance(each, str)}
        assert volumes <= set(WHOLE["volumes"]), name
        for address in re.findall(r"//([a-z-]+):\d+", str(settings.get("environment"))):
            assert address in SERVICES, (name, address)
    made = {**contents({}), **of_workers(), **of_site()}
    assert {each["file"] for each in WHOLE["secrets"].values()} == {f"secrets/{name}" for name in made}
    used = {match[1] for name in FILES for match in VARIABLE.finditer((DOCKER / name).read_text())}
    assert used <= set(example()) | {"OPENMED_REVIEWERS_CLINICAL", "OPENMED_REVIEWERS_TECHNICAL"}


def test_no_port_is_added_and_no_service_gains_rights():
    assert {name for name, each in SERVICES.items() if each.get("ports")} == {"airflow-apiserver", "mlflow"}
    for name, settings in SERVICES.items():
        assert settings["user"] == "/OPENMED_USER_ID:/OPENMED_USER_ID", name
        assert settings["read_only"] is True and settings["cap_drop"] == ["ALL"], name
        assert settings["security_opt"] == ["no-new-privileges:true"] and "cap_add" not in settings, name
        assert all(port.startswith("127.0.0.1:") for port in settings.get("ports", [])), name
        written = [re.search(r"[:,]size=(\w+)", each)[1] for each in settings["tmpfs"]]
        assert sum(map(megabytes, written)) < megabytes(settings["mem_limit"]) <= 8192, name
        assert 0 < settings["pids_limit"] <= 4096 and 0 < float(settings["cpus"]) <= 2, name
        if name not in ONE_SHOT:
            assert settings["restart"] == "unless-stopped" and settings["healthcheck"]["test"], name


def test_no_secret_is_in_the_environment_or_the_command_of_a_container():
    for name, settings in SERVICES.items():
        for variable, value in settings.get("environment", {}).items():
            assert not re.search(r"//[^/@\s]*:[^/@]+@", value), (name, variable)
            if SECRET.search(variable) or variable.endswith("_CMD"):
                assert variable.endswith(("_CMD", "_FILE")), (name, variable)
        assert "requirepass" not in str(settings.get("command")), name
    made = of_workers()
    (password,) = re.findall(r"^requirepass (\S+)\n$", made["broker_conf"])
    assert made["broker_url"] == f"redis://:{password}@broker:6379/0" and len(password) >= 64


def test_workers_reach_neither_the_database_nor_its_password_and_the_scheduler_nothing_of_the_tasks():
    for name in WORKERS:
        assert "database" not in SERVICES[name]["networks"], name
        assert set(secrets_of(SERVICES[name])) == {"broker_url", "mlflow_credentials", "site_secret"}
        assert not [value for value in SERVICES[name]["environment"].values() if "@postgres" in value]
    scheduler = SERVICES["airflow-scheduler"]
    assert set(scheduler["networks"]) == {"airflow", "database", "queue"}
    assert set(secrets_of(scheduler)) == {"airflow_jwt_secret", "airflow_pgpass", "broker_url"}
    assert [
        each for each in scheduler["volumes"] if isinstance(each, dict) and not each.get("read_only")
    ] == []
    members = {name for name, each in SERVICES.items() if "queue" in each["networks"]}
    assert members == {"broker", "airflow-apiserver", "airflow-scheduler", *WORKERS}
    assert WHOLE["networks"]["queue"] == {"internal": True}
    assert SERVICES["broker"]["networks"] == ["queue"]


def test_each_queue_that_the_dags_use_has_a_worker_and_all_hosts_agree_on_it():
    for name, queue in WORKERS.items():
        command = SERVICES[name]["command"]
        assert command[command.index("--queues") + 1] == queue
        assert "--skip-serve-logs" in command, "its server of logs would listen on every interface"
    for name, settings in SERVICES.items():
        if name.startswith(("airflow-", "worker")):
            assert settings["environment"]["OPENMED_GPU_QUEUE"] == "gpu", name
            assert settings["environment"]["AIRFLOW__CORE__EXECUTOR"] == "CeleryExecutor", name
    assert "OPENMED_GPU_QUEUE" in {str(each.validation_alias) for each in Variables.model_fields.values()}


def test_each_worker_is_a_host_of_its_own_that_sees_the_worktrees_of_the_other():
    homes = {name: SERVICES[name]["environment"]["OPENMED_HOME"] for name in WORKERS}
    assert homes == {"worker": "/OPENMED_HOME", "worker-gpu": "/OPENMED_HOME/gpu"}
    for name in WORKERS:
        assert SERVICES[name]["volumes"] == BASE["airflow-scheduler"]["volumes"]
        assert SERVICES[name]["hostname"] == name


def test_the_broker_keeps_what_waits_and_asks_for_its_password():
    command = SERVICES["broker"]["command"]
    assert command[:2] == ["redis-server", "/run/secrets/broker_conf"]
    assert command[command.index("--appendonly") + 1] == "yes"
    (folder,) = SERVICES["broker"]["volumes"]
    assert folder["target"] == command[command.index("--dir") + 1] and folder["type"] == "bind"


@celery
def test_the_commands_of_the_workers_are_understood_and_airflow_reads_the_broker_from_its_file(tmp_path):
    (tmp_path / "url").write_text("redis://:secret@broker:6379/0")
    given = SERVICES["worker"]["environment"]
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    for name in ("AIRFLOW__CELERY__BROKER_URL_CMD", "AIRFLOW__CELERY__RESULT_BACKEND_CMD"):
        environment[name] = given[name].replace("/run/secrets/broker_url", str(tmp_path / "url"))
    environment["AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"] = "86400"
    commands = [SERVICES[name]["command"] for name in WORKERS]
    assert {tuple(command[:3]) for command in commands} == {("python", "-m", "pipeline.local.celery_worker")}
    program = (
        "from airflow.cli.cli_parser import get_parser\n"
        f"for command in {commands!r}: get_parser().parse_args(['celery', 'worker', *command[3:]])\n"
        "from airflow.providers.celery.executors.celery_executor import app\n"
        "print(app.conf.broker_url, app.conf.result_backend, app.conf.broker_transport_options)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    address = "redis://:secret@broker:6379/0"
    assert done.stdout.splitlines()[-1] == f"{address} {address} {{'visibility_timeout': 86400}}"


def test_the_health_checks_are_shell_and_ask_this_worker_alone():
    for name in (*WORKERS, "broker"):
        kind, script = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        subprocess.run(["sh", "-n", "-c", script], check=True)
    words = shlex.split(SERVICES["worker"]["healthcheck"]["test"][1])
    assert words[words.index("--destination") + 1] == "celery@$HOSTNAME"


def test_a_health_check_finds_the_brokers_password_in_its_file(tmp_path):
    """With a `redis-cli` in the place of the real one, which says PONG to this password alone."""
    (tmp_path / "broker_conf").write_text("requirepass right-one\n")
    program = tmp_path / "redis-cli"
    program.write_text('#!/bin/sh\n[ "$REDISCLI_AUTH" = right-one ] && echo PONG || echo NOAUTH\n')
    program.chmod(0o755)
    script = SERVICES["broker"]["healthcheck"]["test"][1]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def ended(conf):
        ready = script.replace("/run/secrets/broker_conf", str(conf))
        return subprocess.run(["sh", "-c", ready], env=environment, check=False, stderr=subprocess.DEVNULL)

    assert ended(tmp_path / "broker_conf").returncode == 0
    (tmp_path / "other").write_text("requirepass wrong-one\n")
    assert ended(tmp_path / "other").returncode != 0 and ended(tmp_path / "none").returncode != 0


def test_yaml_reads_the_override_without_a_tool_of_ours():
    """Tags aside, the file is plain YAML."""
    text = (DOCKER / "compose.celery.yaml").read_text().replace("!override ", "").replace("!override\n", "\n")
    assert set(yaml.safe_load(text)["services"]) >= {"broker", *WORKERS}
