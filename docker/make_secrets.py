"""Makes the secrets of the services, each a file in docker/secrets that its owner alone can read.

Run it as the owner of the clone, as which the containers run: `python3 docker/make_secrets.py`. What exists
is kept, so it may be run again. Passwords of a docker/.env from before there were these files are taken over.
It needs the standard library alone.
"""

import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEOPLE = ("admin", "engineer", "reviewer", "auditor")
"""Users of Airflow; as the last one, tasks read who answered a question."""


def contents(known: Mapping[str, str]) -> dict[str, str]:
    """Returns file -> content, without a line break at its end.

    Args:
        known: Names of docker/.env from before -> secret; what it lacks is drawn.
    """

    def secret(name: str) -> str:
        return known.get(name) or secrets.token_urlsafe(64)

    database, tracking, admin = map(
        secret, ("POSTGRES_PASSWORD", "MLFLOW_DATABASE_PASSWORD", "MLFLOW_ADMIN_PASSWORD")
    )
    people = {name: secret(f"OPENMED_{name.upper()}_PASSWORD") for name in PEOPLE}
    # In both files % begins a reference to another setting.
    escaped = admin.replace("%", "%%")
    return {
        "postgres_password": database,
        "airflow_pgpass": pgpass("airflow", database),
        "mlflow_pgpass": pgpass("mlflow", tracking),
        "airflow_jwt_secret": secret("AIRFLOW_JWT_SECRET"),
        "airflow_session_secret": secret("AIRFLOW_SESSION_SECRET"),
        "airflow_passwords.json": json.dumps(people, indent=2, ensure_ascii=False),
        "mlflow_session_secret": secret("MLFLOW_SESSION_SECRET"),
        # As pipeline/tracking/doors.py has them: `admin` for the services, `reader` for people.
        "mlflow_passwords.json": json.dumps({"admin": admin, "reader": secret("")}, indent=2),
        "mlflow_auth.ini": (
            "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:////srv/mlflow/basic_auth.db\n"
            f"admin_username = admin\nadmin_password = {escaped}\n"
            "authorization_function = pipeline.tracking.doors:authenticate\nauth_cache_ttl_seconds = 300"
        ),
        "mlflow_credentials": (
            f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {escaped}"
        ),
    }


def of_workers() -> dict[str, str]:
    """Returns what compose.celery.yaml needs beyond it: the broker's password, on both of its sides."""
    password = secrets.token_urlsafe(64)
    return {
        "broker_conf": f"requirepass {password}\n",
        "broker_url": f"redis://:{password}@broker:6379/0",
    }


def of_site() -> dict[str, str]:
    """Returns the secret of the site, which its workers have in common: docs/deployment.md."""
    return {"site_secret": secrets.token_urlsafe(64)}


def pgpass(user: str, password: str) -> str:
    """Returns the line in which PostgreSQL's drivers find the password for a user's database."""
    escaped = password.replace("\\", r"\\").replace(":", r"\:")
    return f"postgres:5432:{user}:{user}:{escaped}"


def of_before(file: Path) -> dict[str, str]:
    """Returns the settings of an .env file, none where there is none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    settings = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip().strip("'\"") for name, value in settings}


def make(folder: Path, known: Mapping[str, str]) -> list[str]:
    """Writes what is missing and returns its names; FileExistsError where a part alone is missing.

    The same password stands in several files, so a part of them could not be made to fit the rest.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    wanted: dict[str, str] = {}
    for group in (contents(known), of_workers(), of_site()):
        lacking = [name for name in group if not (folder / name).exists()]
        if lacking and len(lacking) < len(group):
            names = " and ".join(lacking)
            raise FileExistsError(
                f"{folder} lacks {names}: restore it from a backup, or remove all and begin anew"
            )
        wanted |= {name: group[name] for name in lacking}
    missing = list(wanted)
    if not missing:
        return []
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    unfinished.mkdir(mode=0o700)
    for name in missing:
        descriptor = os.open(unfinished / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(wanted[name])
    # Secrets of somebody's own, such as the address of a chat.
    for other in folder.iterdir():
        other.rename(unfinished / other.name)
    folder.rmdir()
    unfinished.rename(folder)
    return missing


def main() -> int:
    """Makes the secrets and says where the passwords of people are; returns the exit code."""
    try:
        made = make(HERE / "secrets", of_before(HERE / ".env"))
    except OSError as error:
        print(f"make_secrets: {error}", file=sys.stderr)
        return 2
    print(f"{len(made)} secrets made in {HERE / 'secrets'}, the rest was there.")
    print("The passwords of people: airflow_passwords.json, and `reader` in mlflow_passwords.json.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
