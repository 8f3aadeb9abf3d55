"""The environment variables of the project, all `OPENMED_*`; docs/variables.md is made from them."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from openmed.errors import BadInput
from pipeline.settings.yaml_file import first_problem


class Variables(BaseSettings):
    """What the environment says now; a variable that is empty is not set.

    A secret, `SecretStr`, may stand in a file instead, which its variable with `_FILE` at the end names: an
    environment is shown by many tools and handed to every child.
    """

    model_config = SettingsConfigDict(
        alias_generator=lambda name: f"OPENMED_{name.upper()}",
        case_sensitive=True,
        env_ignore_empty=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    project: Path | None = None
    """The checkout to work in; default: the nearest folder that holds dvc.yaml."""
    home: Path | None = None
    """The state folder; default: `.openmed` in the project. Each host has its own."""
    record_remote: str | None = None
    """Git remote or address that the record of decisions is pushed to, the same for all hosts that share a
    tracking server; default: none, the record stays in this repository."""
    debug: str = ""
    """Any text: errors show their traceback too, as with `--debug`."""
    site_secret: SecretStr | None = None
    """What pseudonyms of patients, and the seals on what tasks hand on, are made from: the same on all hosts;
    default: the file `site_secret` of the state folder."""
    alert_url: SecretStr | None = None
    """Incoming webhook of a chat, which gets one sentence of a hold or a wish for labels."""
    airflow_url: str | None = None
    """An Airflow elsewhere that is told of new films, and asked by tasks who answered; default: that of
    the state folder."""
    airflow_user: str = "admin"
    """Its user."""
    airflow_password: SecretStr = SecretStr("")
    """The user's password."""
    mlflow_password: SecretStr = SecretStr("")
    """Password of `admin` of the tracking server; default: what MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD or MLflow's file `~/.mlflow/credentials` say."""
    mlflow_url: str | None = None
    """MLflow as reviewers' browsers reach it; default: the tracking server."""
    serve_on_hold: str = ""
    """`yes` lets a served version answer although it is on hold, with a warning."""
    schedule: str = "0 2 * * 0"
    """Cron expression of the retraining, or `off`."""
    score_schedule: str | None = None
    """Cron expression of scoring and watching; default: by hand."""
    timezone: str = "UTC"
    """Time zone of both, such as Europe/Vienna."""
    gpu_queue: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "default"
    """Queue of the trainings, where Airflow's executor has queues; all else goes to `default`."""
    gpu_pod: Path | None = None
    """YAML of a Kubernetes pod, whose fields stand in the place of those of the pods of trainings; default:
    none."""
    incoming: str | None = None
    """Folder of the films to score; default: `incoming` of the state folder."""
    keep_workspaces_days: Annotated[float, Field(ge=0)] = 14
    """Days that the workspace of a failed retraining is kept."""
    least_free_mb: Annotated[float, Field(ge=0)] = 1024
    """Megabytes that must be free on the disks of a host, or its Celery worker takes no tasks."""
    outage_minutes: Annotated[float, Field(ge=0)] = 60
    """Minutes over which a task is tried three times where a server does not answer or a disk is full."""


SECRETS = tuple(
    str(field.validation_alias)
    for field in Variables.model_fields.values()
    if SecretStr in (field.annotation, *get_args(field.annotation))
)
"""The variables whose values are secrets."""
_NOW_IN_THE_PLAN = "OPENMED_REVIEWERS_"


def variables() -> Variables:
    """Reads the environment.

    Raises:
        BadInput: A variable has an impossible value, names a file that holds no secret, or is of before.
    """
    for name, value in os.environ.items():
        if name.startswith(_NOW_IN_THE_PLAN) and value:
            role = name.removeprefix(_NOW_IN_THE_PLAN).lower() or "ROLE"
            raise BadInput(
                f"{name} is set, which counts no longer: name the accounts in protocol.accounts.{role} of "
                "change_plan.yaml, commit it, and take the variable away"
            )
    try:
        return _read(
            frozenset(item for item in os.environ.items() if item[0].startswith("OPENMED_")),
            frozenset((name, _from_file(name)) for name in SECRETS if os.environ.get(f"{name}_FILE")),
        )
    except ValidationError as error:
        raise BadInput(first_problem(error)) from None


def _from_file(name: str) -> str:
    """Reads a secret from the file that its variable `..._FILE` names; it may change at any time."""
    if os.environ.get(name):
        raise BadInput(f"{name} and {name}_FILE are both set: keep the file")
    path = Path(os.environ[f"{name}_FILE"])
    try:
        secret = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(f"{name}_FILE names {path}, which cannot be read: {reason}") from None
    if not secret:
        raise BadInput(f"{name}_FILE names {path}, which is empty: write the secret into it")
    return secret


@lru_cache(maxsize=1)
def _read(_named: frozenset[tuple[str, str]], secrets: frozenset[tuple[str, str]]) -> Variables:
    # Every use of the registry asks where its state folder is: reading it anew was a quarter of a gate.
    values: dict[str, Any] = dict(secrets)
    return Variables(**values)
