"""Which of Airflow's own variables `openmed up` takes, and which it refuses."""

import pytest

from openmed.errors import BadInput
from pipeline.local import airflow_variables
from pipeline.local.airflow_variables import given, has, merged, names

CONN = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
EXECUTOR = "AIRFLOW__CORE__EXECUTOR"


@pytest.fixture
def installed(monkeypatch):
    """Says which packages there are, whatever this environment has."""
    there = set()
    monkeypatch.setattr(airflow_variables, "_installed", there.__contains__)
    return there


def test_executor_database_broker_and_logs_are_taken_by_section_and_option(installed):
    installed.add("apache-airflow-providers-celery")
    environment = {
        EXECUTOR: "CeleryExecutor",
        f"{CONN}_CMD": "cat /etc/openmed/database",
        "AIRFLOW__CELERY__BROKER_URL_CMD": "cat /etc/openmed/broker",
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "43200",
        "AIRFLOW__LOGGING__REMOTE_LOGGING": "True",
        "AIRFLOW__API_AUTH__JWT_SECRET_CMD": "cat /etc/openmed/jwt",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW_HOME": "/elsewhere",
        "PATH": "/bin",
    }
    sections = given(environment)
    assert sections == {
        "api_auth": {"jwt_secret_cmd": "cat /etc/openmed/jwt"},
        "celery": {"broker_url_cmd": "cat /etc/openmed/broker"},
        "celery_broker_transport_options": {"visibility_timeout": "43200"},
        "core": {"executor": "CeleryExecutor"},
        "database": {"sql_alchemy_conn_cmd": "cat /etc/openmed/database"},
        "logging": {"remote_logging": "True"},
    }
    assert set(names(sections)) == {name for name in environment if name.startswith("AIRFLOW__")} - {
        "AIRFLOW__CORE__FERNET_KEY"
    }
    assert has(sections, "database", "sql_alchemy_conn") and not has(sections, "core", "fernet_key")


@pytest.mark.parametrize(
    "name",
    [
        "AIRFLOW__API__HOST",
        "AIRFLOW__API__BASE_URL",
        "AIRFLOW__API__EXPOSE_CONFIG",
        "AIRFLOW__CORE__AUTH_MANAGER",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS",
        "AIRFLOW__CORE__DAGS_FOLDER",
        "AIRFLOW__CORE__XCOM_BACKEND",
        "AIRFLOW__CORE__UNIT_TEST_MODE",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER",
        "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK",
        "AIRFLOW__CELERY",
    ],
)
def test_what_would_open_or_contradict_the_services_is_refused_by_name_and_without_its_value(name):
    with pytest.raises(BadInput, match=rf"^{name} is none of Airflow's variables .* unset it") as refusal:
        given({name: "hidden"})
    assert "hidden" not in str(refusal.value)


@pytest.mark.parametrize("name", ["AIRFLOW_CONN_AWS_DEFAULT", "AIRFLOW_VAR_KEY"])
def test_a_connection_in_the_environment_is_refused_because_every_task_would_have_it(name):
    with pytest.raises(BadInput, match=f"{name} would be in the environment of every task") as refusal:
        given({name: "aws://id:hidden@"})
    assert "hidden" not in str(refusal.value)


def test_an_executor_on_several_hosts_needs_its_package_and_a_database_server(installed):
    for executor in ("CeleryExecutor", "LocalExecutor,KubernetesExecutor", "team:CeleryExecutor"):
        with pytest.raises(BadInput, match=r"needs apache-airflow-providers-.*`make distributed`"):
            given({EXECUTOR: executor, CONN: "postgresql://x"})
    installed |= {"apache-airflow-providers-celery", "apache-airflow-providers-cncf-kubernetes"}
    for executor in ("CeleryExecutor", "LocalExecutor,KubernetesExecutor"):
        assert given({EXECUTOR: executor, CONN: "postgresql://x"})["core"] == {"executor": executor}
        with pytest.raises(
            BadInput, match="needs a database server: set AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
        ):
            given({EXECUTOR: executor})
    assert given({EXECUTOR: "LocalExecutor"}) == {"core": {"executor": "LocalExecutor"}}


@pytest.mark.parametrize("option", ["jwt_secret", "jwt_secret_cmd", "jwt_secret_secret"])
def test_what_is_given_takes_the_place_of_ours_in_whichever_way_it_is_given(option):
    own = {"api_auth": {"jwt_secret": "drawn"}, "core": {"executor": "LocalExecutor"}}
    assert merged(own, {"api_auth": {option: "theirs"}, "celery": {"broker_url": "redis://"}}) == {
        "api_auth": {option: "theirs"},
        "celery": {"broker_url": "redis://"},
        "core": {"executor": "LocalExecutor"},
    }
    assert own["api_auth"] == {"jwt_secret": "drawn"}
