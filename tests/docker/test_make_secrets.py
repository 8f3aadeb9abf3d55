"""The secrets of the containers: files for their owner alone, which the services' own readers understand."""

import importlib
import importlib.util
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_secrets = load("make_secrets", DOCKER / "make_secrets.py")
contents, of_workers, of_site = make_secrets.contents, make_secrets.of_workers, make_secrets.of_site


@pytest.fixture
def docker(tmp_path):
    """A docker folder with the program in it, as in a clone."""
    shutil.copy(DOCKER / "make_secrets.py", tmp_path)
    return tmp_path


def run(docker):
    # -I: without the packages of this environment.
    command = [sys.executable, "-I", "-S", str(docker / "make_secrets.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, umask=0o022)


def read(docker):
    return {path.name: path.read_text() for path in (docker / "secrets").iterdir()}


def test_one_command_makes_them_for_their_owner_alone_and_keeps_what_is_there(docker):
    done = run(docker)
    assert done.returncode == 0 and done.stdout.startswith("13 secrets made")
    folder, first = docker / "secrets", read(docker)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert set(first) == {*contents({}), *of_workers(), *of_site()} and {
        path.name for path in docker.iterdir()
    } == {
        "make_secrets.py",
        "secrets",
    }
    # A line break at the end would be part of what Airflow takes from `cat`.
    assert [name for name, text in first.items() if text.endswith("\n")] == ["broker_conf"]
    assert run(docker).stdout.startswith("0 secrets made") and read(docker) == first
    shutil.rmtree(folder)
    assert run(docker).returncode == 0
    assert not set(read(docker).values()) & set(first.values())


def test_no_two_secrets_are_alike_and_none_is_short():
    made = contents({})
    single = [made[name] for name in made if name.endswith(("_password", "_secret"))]
    people = json.loads(made["airflow_passwords.json"])
    assert set(people) == {"admin", "engineer", "reviewer", "auditor"}
    drawn = [
        *single,
        *people.values(),
        *(made[f"{who}_pgpass"].split(":")[-1] for who in ("airflow", "mlflow")),
    ]
    assert min(map(len, drawn)) >= 64
    # PostgreSQL's own password is that by which Airflow enters.
    assert len(set(drawn)) == len(drawn) - 1


def test_a_missing_part_is_refused_because_it_could_not_fit_the_rest(docker):
    run(docker)
    (docker / "secrets" / "mlflow_pgpass").unlink()
    before, done = read(docker), run(docker)
    assert done.returncode == 2 and read(docker) == before
    assert done.stderr.startswith("make_secrets: ") and "lacks mlflow_pgpass: restore it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_workers_need_is_added_to_secrets_from_before_there_were_workers(docker):
    run(docker)
    for name in (*of_workers(), *of_site()):
        (docker / "secrets" / name).unlink()
    before = read(docker)
    # The secret of a site that has been running on one host is kept.
    (docker / "secrets" / "site_secret").write_text("of the state folder")
    assert run(docker).stdout.startswith("2 secrets made")
    now = read(docker)
    assert now["site_secret"] == "of the state folder"
    assert before.items() <= now.items() and set(now) - set(before) == {*of_workers(), "site_secret"}
    (docker / "secrets" / "broker_conf").unlink()
    done = run(docker)
    assert done.returncode == 2 and "lacks broker_conf: restore it" in done.stderr


def test_passwords_of_an_env_file_of_before_are_taken_over(docker):
    old = {"POSTGRES_PASSWORD": "db", "MLFLOW_DATABASE_PASSWORD": "store", "OPENMED_ADMIN_PASSWORD": "a=b"}
    old |= {"MLFLOW_ADMIN_PASSWORD": "100% sure, sure", "AIRFLOW_JWT_SECRET": "jwt"}
    lines = ["# POSTGRES_PASSWORD=comment", "OPENMED_HOME=/x", *(f"{k}='{v}'" for k, v in old.items())]
    (docker / ".env").write_text("\n".join(lines) + "\n")
    assert run(docker).returncode == 0
    made = read(docker)
    assert made["postgres_password"] == "db" and made["airflow_jwt_secret"] == "jwt"
    assert made["airflow_pgpass"] == "postgres:5432:airflow:airflow:db"
    assert made["mlflow_pgpass"] == "postgres:5432:mlflow:mlflow:store"
    assert json.loads(made["airflow_passwords.json"])["admin"] == "a=b"


@pytest.mark.parametrize("password", ["a:b", "a\\b", "a\\:b:", "\\"])
def test_postgres_has_the_password_that_its_drivers_find(docker, password):
    """What the init command gives the role of MLflow is what the line of pgpass says by libpq's rules."""
    (docker / ".env").write_text(f"MLFLOW_DATABASE_PASSWORD={password}\n")
    run(docker)
    line = (docker / "secrets/mlflow_pgpass").read_text()
    # libpq: fields end at a colon without a backslash before it, which escapes one character.
    fields, escaped = [""], False
    for char in line:
        if escaped or char not in "\\:":
            fields[-1] += char
        elif char == ":":
            fields.append("")
        escaped = char == "\\" and not escaped
    assert fields == ["postgres", "5432", "mlflow", "mlflow", password]
    init = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["airflow-init"]["command"][2]
    lines = [
        each
        for each in init.splitlines()
        if each.startswith(("import ", "secrets = ", "escaped = ", "password = "))
    ]
    script = "\n".join(lines).replace("/run/secrets", str(docker / "secrets")).replace(", psycopg2", "")
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\nprint(password)"], capture_output=True, text=True
    )
    assert done.stdout == f"{password}\n", done.stderr


def test_secrets_of_ones_own_stay_beside_those_that_are_made(docker):
    (docker / "secrets").mkdir()
    (docker / "secrets/alert_url").write_text("https://chat.example/1")
    assert run(docker).returncode == 0
    assert read(docker)["alert_url"] == "https://chat.example/1" and len(read(docker)) == 14
    assert stat.S_IMODE((docker / "secrets").stat().st_mode) == 0o700
    assert {path.name for path in docker.iterdir()} == {"make_secrets.py", "secrets"}


def test_mlflow_reads_the_same_password_on_both_sides(docker, monkeypatch):
    from mlflow.server.auth.config import read_auth_config
    from mlflow.utils.credentials import read_mlflow_creds

    (docker / ".env").write_text("MLFLOW_ADMIN_PASSWORD=100% sure %(of) it\n")
    run(docker)
    home = docker / "home"
    (home / ".mlflow").mkdir(parents=True)
    shutil.copy(docker / "secrets/mlflow_credentials", home / ".mlflow/credentials")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(docker / "secrets/mlflow_auth.ini"))
    server, client = read_auth_config(), read_mlflow_creds()
    assert server.admin_password == client.password == "100% sure %(of) it"
    assert server.admin_username == client.username == "admin"
    assert json.loads((docker / "secrets/mlflow_passwords.json").read_text())["admin"] == client.password
    module, _, function = server.authorization_function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert server.database_uri == "sqlite:////srv/mlflow/basic_auth.db"
