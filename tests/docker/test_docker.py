"""What can be said of the images and the compose files without an engine."""

import fnmatch
import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.local.airflow_settings import AirflowSettings
from pipeline.tracking import doors
from tests.docker.compose_files import VARIABLE
from tests.docker.test_make_secrets import DOCKER, contents

ROOT = Path(__file__).parents[2]
COMPOSE = (DOCKER / "compose.yaml").read_text()
CUDA = (DOCKER / "compose.cuda.yaml").read_text()
SECRET = re.compile(r"PASSWORD|SECRET|_KEY|TOKEN")
SERVICES = yaml.safe_load(COMPOSE)["services"]
ONE_SHOT = {"airflow-init"}
TEXT, TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SIZE = {"type": "string", "pattern": r"^\d+[mg]$|^/OPENMED_MEMORY$"}


def closed(required: tuple[str, ...] = (), **properties: dict) -> dict:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def mapping(of: dict) -> dict:
    return {"type": "object", "additionalProperties": of}


# The part of compose-spec.json in use: a misspelt key would be refused by Docker alone.
SERVICE = closed(
    ("image", "user", "read_only", "cap_drop", "security_opt", "pids_limit", "cpus", "mem_limit", "networks"),
    build=closed(context=TEXT, dockerfile=TEXT, args=mapping(TEXT)),
    cap_drop=TEXTS,
    command=TEXTS,
    cpus={"type": ["number", "string"]},
    depends_on=mapping(closed(("condition",), condition=TEXT)),
    environment=mapping(TEXT),
    healthcheck=closed(
        test=TEXTS | {"uniqueItems": False},
        interval=TEXT,
        timeout=TEXT,
        retries={"type": "integer"},
        start_period=TEXT,
    ),
    hostname=TEXT,
    image=TEXT,
    init={"type": "boolean"},
    mem_limit=SIZE,
    networks=TEXTS,
    pids_limit={"type": "integer"},
    ports=TEXTS,
    pull_policy={"enum": ["never"]},
    read_only={"const": True},
    restart={"enum": ["no", "unless-stopped"]},
    secrets={"type": "array", "items": {"anyOf": [TEXT, closed(("source",), source=TEXT, target=TEXT)]}},
    security_opt=TEXTS,
    stop_grace_period=TEXT,
    tmpfs=TEXTS,
    user=TEXT,
    volumes={
        "type": "array",
        "items": {
            "anyOf": [
                TEXT,
                closed(
                    ("type", "source", "target"),
                    type={"enum": ["bind"]},
                    source=TEXT,
                    target=TEXT,
                    read_only={"type": "boolean"},
                    bind=closed(create_host_path={"const": False}),
                ),
            ]
        },
    },
    working_dir=TEXT,
)
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "patternProperties": {"^x-": {}},
    "properties": {
        "name": TEXT,
        "services": mapping(SERVICE),
        "secrets": mapping(closed(("file",), file=TEXT)),
        "networks": mapping(closed(internal={"type": "boolean"}, driver_opts=mapping(TEXT))),
        "volumes": mapping({"type": "null"}),
    },
}


def example() -> dict[str, str]:
    lines = (DOCKER / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def rendered(**values: str) -> dict:
    """The compose file as Compose reads it, every required variable set to its own name."""

    def value(match: re.Match) -> str:
        name, kind, rest = match.groups()
        return values.get(name) or (rest if kind == ":-" else f"/{name}")

    return yaml.safe_load(VARIABLE.sub(value, COMPOSE).replace("$$", "$"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def locked(path: Path) -> dict[str, str]:
    pinned = r"^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;]+)"
    return dict(re.findall(pinned, path.read_text(), re.MULTILINE))


def stages(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


# --- compose: variables and secrets ---


def test_every_variable_of_the_compose_files_is_in_the_example_and_no_other():
    used = {match[1] for match in VARIABLE.finditer(COMPOSE + CUDA)}
    of_before = {f"OPENMED_REVIEWERS_{role}" for role in ("CLINICAL", "TECHNICAL")}
    assert used - of_before == set(example()) and of_before < used
    read = rendered()["services"]["airflow-scheduler"]["environment"]
    assert {read[name] for name in of_before} == {""}


def test_example_holds_no_value():
    assert set(example().values()) == {""}


def test_no_setting_of_the_env_file_is_a_secret():
    assert not [name for name in example() if SECRET.search(name)]


def test_no_secret_is_in_the_environment_or_the_command_of_a_container():
    for service, settings in rendered()["services"].items():
        for name, value in settings.get("environment", {}).items():
            assert not re.search(r"//[^/@\s]+:[^/@]*@", value), f"{service}: {name}"
            if SECRET.search(name):
                kind = name.rpartition("_")[2]
                assert kind in {"CMD", "FILE"}, f"{service}: {name}"
                assert value.startswith(("cat /run/secrets/", "/run/secrets/", "/srv/airflow/")), name
        assert not re.search("https?://[^/]*@|password=", str(settings.get("command")))


def test_only_settings_that_airflow_calls_sensitive_are_read_by_a_command():
    package = Path(find_spec("airflow").submodule_search_locations[0])
    known = yaml.safe_load((package / "config_templates" / "config.yml").read_text())
    named = {name for s in SERVICES.values() for name in s.get("environment", {}) if name.endswith("_CMD")}
    assert named == {"AIRFLOW__API__SECRET_KEY_CMD", "AIRFLOW__API_AUTH__JWT_SECRET_CMD"}
    for name in named:
        section, option = name.removeprefix("AIRFLOW__").removesuffix("_CMD").lower().split("__", 1)
        # Airflow ignores `_CMD` of any other.
        assert known[section]["options"][option]["sensitive"] is True


def test_each_service_gets_the_secrets_it_needs_and_each_is_made(tmp_path):
    airflow = {"airflow_jwt_secret", "airflow_pgpass"}
    assert {service: set(secrets_of(settings)) for service, settings in SERVICES.items()} == {
        "postgres": {"postgres_password"},
        "airflow-init": airflow | {"airflow_passwords", "mlflow_pgpass"},
        "airflow-apiserver": airflow | {"airflow_session_secret"},
        "airflow-scheduler": airflow | {"mlflow_credentials"},
        "airflow-dag-processor": airflow,
        "airflow-triggerer": airflow,
        "mlflow": {"mlflow_auth", "mlflow_passwords", "mlflow_pgpass", "mlflow_session_secret"},
    }
    declared = yaml.safe_load(COMPOSE)["secrets"]
    assert set(declared) == {name for settings in SERVICES.values() for name in secrets_of(settings)}
    assert {each["file"] for each in declared.values()} == {f"secrets/{name}" for name in contents({})}
    for service, settings in rendered()["services"].items():
        used = set(re.findall(r"/run/secrets/(\w+)", str(settings)))
        assert used <= set(secrets_of(settings)) | {"airflow_session_secret"}, service


def secrets_of(settings: dict) -> list[str]:
    return [each if isinstance(each, str) else each["source"] for each in settings.get("secrets", [])]


def test_git_ignores_what_is_filled_in():
    assert (DOCKER / ".gitignore").read_text().split() == ["/.env", "/secrets/"]


# --- compose: services ---


def test_the_file_is_what_the_compose_specification_calls_one():
    jsonschema.validate(rendered(), SCHEMA)
    wrong = yaml.safe_load(COMPOSE)
    wrong["services"]["mlflow"]["readonly"] = wrong["services"]["mlflow"].pop("read_only")
    with pytest.raises(jsonschema.ValidationError, match=r"readonly|read_only"):
        jsonschema.validate(wrong, SCHEMA)


def test_every_published_port_is_bound_to_loopback():
    published = [port for settings in SERVICES.values() for port in settings.get("ports", [])]
    assert len(published) == 2
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_every_service_restarts_and_has_a_health_check_unless_it_runs_once():
    for service, settings in SERVICES.items():
        if service in ONE_SHOT:
            assert settings["restart"] == "no"
        else:
            assert settings["restart"] == "unless-stopped", service
            assert settings["healthcheck"]["test"][0] == "CMD", service


def test_services_wait_for_services_that_can_be_waited_for():
    for service, settings in SERVICES.items():
        for needed, how in settings.get("depends_on", {}).items():
            if needed in ONE_SHOT:
                assert how == {"condition": "service_completed_successfully"}, service
            else:
                assert how == {"condition": "service_healthy"}, service
                assert "healthcheck" in SERVICES[needed]


def test_images_are_pinned_or_built_here():
    own = {settings["image"] for settings in SERVICES.values() if "build" in settings}
    for service, settings in SERVICES.items():
        if settings["image"] in own:
            assert settings["pull_policy"] == "never", service
        else:
            assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z]+)?$", settings["image"]), service


def test_no_container_can_gain_rights_or_write_into_its_image():
    for service, settings in rendered()["services"].items():
        assert settings["user"] == "/OPENMED_USER_ID:/OPENMED_USER_ID", service
        assert settings["read_only"] is True, service
        assert settings["cap_drop"] == ["ALL"] and "cap_add" not in settings, service
        assert settings["security_opt"] == ["no-new-privileges:true"], service
        assert "privileged" not in settings and "docker.sock" not in str(settings)


def test_every_container_has_limits():
    for service, settings in rendered(OPENMED_CPUS="2", OPENMED_MEMORY="8g")["services"].items():
        assert 0 < settings["pids_limit"] <= 4096, service
        assert 0 < float(settings["cpus"]) <= 2, service
        limit_mb = megabytes(settings["mem_limit"])
        written = [re.search(r"[:,]size=(\w+)", each)[1] for each in settings["tmpfs"]]
        # What lies in a tmpfs is memory of the container.
        assert sum(map(megabytes, written)) < limit_mb <= 8192, service


def megabytes(size: str) -> int:
    return int(size[:-1]) * {"m": 1, "g": 1024}[size[-1]]


def test_what_is_written_is_a_volume_or_for_the_moment():
    for service, settings in rendered()["services"].items():
        targets = {each.split(":")[0] for each in settings["tmpfs"]}
        if service == "postgres":
            assert targets == {"/tmp", "/var/run/postgresql"}
            assert settings["environment"]["PGDATA"].startswith("/var/lib/postgresql/data/")
        else:
            assert targets == {"/tmp", "/var/tmp", "/home/openmed"}, service
            (home,) = (each for each in settings["tmpfs"] if each.startswith("/home"))
            assert "mode=0700,uid=/OPENMED_USER_ID,gid=/OPENMED_USER_ID" in home


def test_only_who_needs_a_service_reaches_it():
    networks = yaml.safe_load(COMPOSE)["networks"]
    inside = {name for name, settings in networks.items() if settings.get("internal")}
    assert inside == {"airflow", "database", "tracking"} and set(networks) == inside | {"pages", "outside"}
    assert networks["pages"]["driver_opts"] == {"com.docker.network.bridge.enable_icc": "false"}
    members = {
        name: {service for service, settings in SERVICES.items() if name in settings["networks"]}
        for name in networks
    }
    airflow = {service for service in SERVICES if service.startswith("airflow-")}
    with_database = {s for s, each in SERVICES.items() if "@postgres/" in str(each.get("environment"))}
    assert members == {
        "database": with_database | {"postgres"},
        "airflow": airflow - ONE_SHOT,
        # Nothing else reaches MLflow: the page of Airflow and the parser of DAG files do not.
        "tracking": {"mlflow", "airflow-scheduler"},
        "pages": {service for service, settings in SERVICES.items() if "ports" in settings},
        "outside": {"airflow-scheduler"},
    }
    assert with_database == airflow | {"mlflow"}


def test_code_is_mounted_read_only_and_only_the_scheduler_writes_beside_it():
    for service, settings in rendered()["services"].items():
        mounts = [each for each in settings.get("volumes", []) if isinstance(each, dict)]
        written = {each["target"] for each in mounts if not each.get("read_only")}
        allowed = {"/OPENMED_PROJECT/.git", "/OPENMED_PROJECT/.dvc/cache", "/OPENMED_HOME"}
        assert written == (allowed if service == "airflow-scheduler" else set()), service
        for each in mounts:
            assert each["source"] == each["target"]


def test_named_volumes_are_declared_and_used():
    used = {v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", []) if isinstance(v, str)}
    assert used == set(yaml.safe_load(COMPOSE)["volumes"])


def test_cuda_file_gives_the_gpu_to_the_service_that_runs_the_tasks():
    added = yaml.safe_load(CUDA)["services"]
    assert set(added) == {"airflow-scheduler"}
    (device,) = added["airflow-scheduler"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert "gpu" in device["capabilities"]


# --- compose: what it says to Airflow and MLflow ---


def test_airflow_settings_are_options_that_airflow_has():
    package = Path(find_spec("airflow").submodule_search_locations[0])
    known = yaml.safe_load((package / "config_templates" / "config.yml").read_text())
    found = 0
    for settings in SERVICES.values():
        for name in settings.get("environment", {}):
            if name.startswith("AIRFLOW__"):
                section, option = name.removeprefix("AIRFLOW__").removesuffix("_CMD").lower().split("__", 1)
                assert option in known[section]["options"], name
                found += 1
    assert found > 50


def test_airflow_is_set_as_openmed_up_sets_it_where_no_place_is_meant(tmp_path):
    sections = AirflowSettings(ROOT, tmp_path, 8080, None, 4)._sections({"jwt": "", "session": ""})
    known = {
        name: str(value)
        for section, options in sections.items()
        for option, value in options.items()
        if (name := f"AIRFLOW__{section}__{option}".upper()) in SERVICES["airflow-scheduler"]["environment"]
    }
    named = {name: SERVICES["airflow-scheduler"]["environment"][name] for name in known}
    places = re.compile(r"URL$|FOLDER$|FILE$|CONN$")
    alike = {name for name in known if not places.search(name)}
    assert {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", "AIRFLOW__API__EXPOSE_CONFIG"} < alike
    assert {name: named[name] for name in alike} == {name: known[name] for name in alike}


def test_airflow_commands_are_understood_by_airflows_own_parser(tmp_path):
    commands = [s["command"][1:] for s in SERVICES.values() if s.get("command", [""])[0] == "airflow"]
    script = rendered()["services"]["airflow-init"]["command"][2]
    for line in re.findall(r"^airflow (.+)$", script, re.MULTILINE):
        commands.append(re.findall(r'[^\s"]+|"[^"]*"', line))
    assert len(commands) == 7
    program = (
        "import json, sys\nfrom airflow.cli.cli_parser import get_parser\n"
        "for command in json.loads(sys.argv[1]): get_parser().parse_args(command)\n"
        "from airflow.configuration import conf\n"
        "assert (conf.get('api', 'secret_key'), conf.get('api_auth', 'jwt_secret')) == ('key', 'key')\n"
    )
    (tmp_path / "secret").write_text("key")
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment |= {
        name: re.sub(r"/run/secrets/\w+", str(tmp_path / "secret"), value)
        for name, value in SERVICES["airflow-apiserver"]["environment"].items()
        if name.endswith("_CMD")
    }
    arguments = [sys.executable, "-c", program, json.dumps(commands)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_mlflow_command_is_understood_by_mlflow_and_asks_for_a_password():
    from mlflow.cli import cli

    shell, flags, script = SERVICES["mlflow"]["command"]
    assert (shell, flags) == ("bash", "-euc")
    start = script.strip().splitlines()[-1]
    program, server, group, *arguments = shlex.split(start)
    assert (program, server, group) == ("exec", "mlflow", "server")
    options = cli.commands["server"].make_context("server", list(arguments)).params
    assert options["app_name"] == "basic-auth"
    (own,) = (each for each in SERVICES["mlflow"]["secrets"] if isinstance(each, dict))
    assert Path(own["target"]) == doors.password_file(Path(SERVICES["mlflow"]["environment"]["OPENMED_HOME"]))
    assert options["workers"] == "1"
    tracking = SERVICES["airflow-scheduler"]["environment"]["MLFLOW_TRACKING_URI"]
    allowed = options["allowed_hosts"].split(",")
    for host in (tracking.removeprefix("http://"), "127.0.0.1:5000", "localhost:5000"):
        assert any(fnmatch.fnmatch(host, pattern) for pattern in allowed)
    assert not any(fnmatch.fnmatch("evil.example.com", pattern) for pattern in allowed)


def test_pools_that_the_dags_use_are_made():
    script = SERVICES["airflow-init"]["command"][2]
    made = set(re.findall(r"^airflow pools set (\w+)", script, re.MULTILINE))
    sources = "".join(path.read_text() for path in (ROOT / "dags").glob("*.py"))
    assert made == set(re.findall(r'pool="(\w+)"', sources)) | set(re.findall(r'"(gpu)" if', sources))


def test_scripts_of_the_services_are_shell_and_python(tmp_path):
    for service in ("airflow-init", "mlflow"):
        script = rendered()["services"][service]["command"][2]
        subprocess.run(["bash", "-n", "-c", script], check=True)
        for program in re.findall(r"<<'PYTHON'\n(.*?)PYTHON\n", script, re.DOTALL):
            compile(program, service, "exec")


def test_init_writes_the_passwords_for_the_owner_alone(tmp_path):
    script = rendered()["services"]["airflow-init"]["command"][2]
    assert script.startswith("umask 077\n")
    (line,) = (line for line in script.splitlines() if "/run/secrets/airflow_passwords" in line)
    (tmp_path / "secret").write_text(
        contents({"OPENMED_ADMIN_PASSWORD": 'a"b$c ü'})["airflow_passwords.json"]
    )
    file = tmp_path / "passwords.json"
    environment = {**os.environ, "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(file)}
    line = line.replace("/run/secrets/airflow_passwords", str(tmp_path / "secret"))
    subprocess.run(["bash", "-euc", f"umask 077\n{line}"], env=environment, check=True)
    assert json.loads(file.read_text())["admin"] == 'a"b$c ü'
    assert file.stat().st_mode & 0o777 == 0o600
    users = SERVICES["airflow-init"]["environment"]["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"]
    assert {each.split(":")[0] for each in users.split(",")} == set(json.loads(file.read_text()))


@pytest.fixture
def health_page():
    """An HTTP page that says what Airflow says of a running scheduler and a dead triggerer."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/v2/monitor/health" else 404)
            self.end_headers()
            self.wfile.write(b'{"scheduler": {"status": "healthy"}, "triggerer": {"status": "unhealthy"}}')

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("service", "healthy"),
    [
        ("airflow-apiserver", True),
        ("airflow-scheduler", True),
        ("airflow-triggerer", False),
        ("airflow-dag-processor", False),
        ("mlflow", False),
    ],
)
def test_health_check_tells_a_healthy_component_from_others(service, healthy, health_page):
    kind, _, *arguments = SERVICES[service]["healthcheck"]["test"]
    there = re.compile(r"(airflow-apiserver|127\.0\.0\.1):\d+")
    command = [sys.executable, *(there.sub(health_page, argument) for argument in arguments)]
    assert kind == "CMD"
    assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) == healthy


# --- the image ---


def test_base_images_are_pinned_or_stages_of_the_same_file():
    known = {"packages-${DEVICE}"}
    for base, name in (re.fullmatch(r"(\S+) AS (\S+)", each).groups() for each in stages("FROM")):
        assert base in known or re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-\S+", base), base
        known.add(name)
    assert {"packages-cpu", "packages-cuda"} <= known


def test_base_image_has_the_python_the_lock_is_made_for():
    wanted = re.search(r"--python-version (\S+)", (ROOT / "requirements.lock").read_text())[1]
    assert stages("FROM")[0].startswith(f"python:{wanted}.")


def test_image_ends_as_an_ordinary_user():
    last_stage = instructions()[max(i for i, (word, _) in enumerate(instructions()) if word == "FROM") :]
    users = [rest for word, rest in last_stage if word == "USER"]
    assert users == ["openmed"]
    assert int(re.search(r"USER_ID=(\d+)", str(last_stage))[1]) >= 1000


def test_image_holds_no_secret_and_fetches_nothing_by_address():
    assert not stages("ADD")
    assert "://" not in "".join(rest for _, rest in instructions())
    for word, rest in instructions():
        if word in {"ARG", "ENV"}:
            assert not SECRET.search(rest.partition("=")[0]), rest


def test_what_is_copied_exists_and_reaches_the_builder():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [line for line in lines if line[:1] not in ("", "#")]
    assert ignored[0] == "*"
    copied = [rest.split()[0] for rest in stages("COPY") if not rest.startswith("--from=")]
    assert {f"!{source}" for source in copied} == set(ignored[1:])
    for source in copied:
        assert (ROOT / source).is_file(), source


def test_every_installation_from_a_lock_checks_hashes():
    installs = [rest for rest in stages("RUN") if re.search(r"pip install .*--requirement", rest)]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install
        assert "--no-deps" in install


# --- its packages ---


@pytest.mark.parametrize("name", ["requirements.lock", "bootstrap.lock"])
def test_lock_of_the_image_pins_and_hashes_what_is_asked_for(name):
    text, versions = (DOCKER / name).read_text(), locked(DOCKER / name)
    asked = (DOCKER / name.replace(".lock", ".in")).read_text().splitlines()
    assert {line for line in asked if not line.startswith("#")} <= set(versions)
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(versions)
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize("name", ["requirements.lock", "bootstrap.lock"])
def test_locks_of_the_image_agree_with_the_projects(name):
    project = locked(ROOT / "requirements.lock")
    both = {package for package in locked(DOCKER / name) if package in project}
    assert {package: project[package] for package in both} == {
        package: version for package, version in locked(DOCKER / name).items() if package in both
    }


def test_postgres_provider_is_of_the_set_that_airflow_asks_for():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    versions = locked(DOCKER / "requirements.lock")
    needed = [Requirement(line) for line in requires("apache-airflow")]
    (provider,) = [each for each in needed if each.marker and str(each.marker) == 'extra == "postgres"']
    assert provider.specifier.contains(versions[provider.name])


def test_cpu_image_leaves_out_exactly_what_the_lock_has_for_gpus():
    listed = {line for line in (DOCKER / "cuda-packages.txt").read_text().splitlines() if line[:1] != "#"}
    gpu = re.compile(r"(torch|torchvision|triton|(nvidia|cuda)-.+)")
    assert listed == {package for package in locked(ROOT / "requirements.lock") if gpu.fullmatch(package)}
