"""Airflow's own variables that `openmed up` takes: another executor, another database and what they need.

Airflow reads `AIRFLOW__SECTION__OPTION`; `..._CMD` names a command that prints a secret, `..._SECRET` one of
Airflow's secrets backend. What is taken goes into a file of the owner's, so that no task inherits it.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from openmed.errors import BadInput

Sections = Mapping[str, Mapping[str, str]]
"""Section -> option -> value, as in airflow.cfg."""

_PREFIX = "AIRFLOW__"
_PAGE = "docs/deployment.md"
# None takes all options of a section. What is not here `openmed up` sets itself, or it would open what it
# keeps closed: other addresses to listen on, other users, code and DAGs from elsewhere.
_TAKEN: dict[str, frozenset[str] | None] = {
    "core": frozenset({"executor", "execution_api_server_url", "fernet_key", "parallelism"}),
    "database": frozenset(
        {
            "max_db_retries",
            "sql_alchemy_conn",
            "sql_alchemy_conn_async",
            "sql_alchemy_connect_args",
            "sql_alchemy_connect_args_async",
            "sql_alchemy_engine_args",
            "sql_alchemy_max_overflow",
            "sql_alchemy_pool_enabled",
            "sql_alchemy_pool_pre_ping",
            "sql_alchemy_pool_recycle",
            "sql_alchemy_pool_size",
            "sql_alchemy_schema",
        }
    ),
    "api": frozenset({"secret_key"}),
    "api_auth": None,
    "celery": None,
    "celery_broker_transport_options": None,
    "celery_result_backend_transport_options": None,
    "execution_api": None,
    "kubernetes_executor": None,
    "logging": frozenset(
        {
            "delete_local_logs",
            "encrypt_s3_logs",
            "google_key_path",
            "logging_level",
            "remote_base_log_folder",
            "remote_log_conn_id",
            "remote_logging",
            "remote_task_handler_kwargs",
        }
    ),
    "scheduler": frozenset(
        {"orphaned_tasks_check_interval", "task_instance_heartbeat_timeout", "task_queued_timeout"}
    ),
    "secrets": None,
    "workers": None,
}
_CELERY, _KUBERNETES = "apache-airflow-providers-celery", "apache-airflow-providers-cncf-kubernetes"
_PROVIDERS = {"CeleryExecutor": _CELERY, "KubernetesExecutor": _KUBERNETES}
_LOCAL = "LocalExecutor"
_OF_A_WORKER = (("core", "execution_api_server_url"), ("celery", "broker_url"), ("celery", "result_backend"))


def given(environment: Mapping[str, str], *, worker: bool = False) -> dict[str, dict[str, str]]:
    """Returns what an environment asks of Airflow, by section and option; one that is empty asks nothing.

    Args:
        environment: Name -> value.
        worker: It is for a worker, which takes tasks from a broker and asks Airflow's API for all else.

    Raises:
        BadInput: A variable is not taken, or what is asked for does not fit together or lacks packages.
    """
    sections: dict[str, dict[str, str]] = {}
    for name, value in sorted(environment.items()):
        if name.startswith(_PREFIX) and value:
            section, option = _place(name)
            sections.setdefault(section, {})[option] = value
        elif name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_")) and value:
            raise BadInput(
                f"{name} would be in the environment of every task: make it in Airflow, or name a secrets "
                f"backend with AIRFLOW__SECRETS__BACKEND ({_PAGE})"
            )
    if worker:
        _check_worker(sections)
    else:
        _check(sections)
    return sections


def names(sections: Sections) -> list[str]:
    """Returns the variables that were taken, without their values."""
    return [f"{_PREFIX}{section}__{option}".upper() for section in sections for option in sections[section]]


def merged(own: Sections, sections: Sections) -> dict[str, dict[str, str]]:
    """Returns our sections with what was given in the place of ours."""
    result = {section: dict(options) for section, options in own.items()}
    for section, options in sections.items():
        mine = result.setdefault(section, {})
        for option, value in options.items():
            # Airflow takes a plain option before the command that prints it.
            mine.pop(_stem(option), None)
            mine[option] = value
    return result


def has(sections: Sections, section: str, option: str) -> bool:
    """Says whether an option was given, be it as a value, a command or a name in a secrets backend."""
    return any(_stem(each) == option for each in sections.get(section, {}))


def _place(name: str) -> tuple[str, str]:
    section, _, option = name.removeprefix(_PREFIX).lower().partition("__")
    options = _TAKEN.get(section, frozenset())
    if not option or (options is not None and _stem(option) not in options):
        raise BadInput(
            f"{name} is none of Airflow's variables that `openmed up` takes: unset it; {_PAGE} lists them"
        )
    return section, option


def _stem(option: str) -> str:
    if option.endswith("_cmd"):
        return option.removesuffix("_cmd")
    return option if option == "jwt_secret" else option.removesuffix("_secret")


def _check(sections: Sections) -> None:
    executors = sections.get("core", {}).get("executor", _LOCAL).split(",")
    for executor in executors:
        provider = _PROVIDERS.get(executor.strip().rpartition(":")[2])
        if provider and not _installed(provider):
            raise BadInput(
                f"AIRFLOW__CORE__EXECUTOR is {executor}, which needs {provider}: `make distributed`"
            )
    elsewhere = [executor for executor in executors if executor.strip().rpartition(":")[2] != _LOCAL]
    if elsewhere and not has(sections, "database", "sql_alchemy_conn"):
        raise BadInput(
            f"AIRFLOW__CORE__EXECUTOR is {elsewhere[0]}, which needs a database server: set "
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN or AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD"
        )


def _check_worker(sections: Sections) -> None:
    if not _installed(_CELERY):
        raise BadInput(f"a worker needs {_CELERY}: `make distributed`")
    for section, option in _OF_A_WORKER:
        if not has(sections, section, option):
            name = f"{_PREFIX}{section}__{option}".upper()
            raise BadInput(f"a worker needs {name}, the same as Airflow's other hosts have ({_PAGE})")


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
