"""Who may use the MLflow server: its two accounts, and what each may do.

The services, and whoever decides, use `admin`. People read with `reader`: MLflow itself would let every
account make experiments and models of its own, so whatever writes is refused to all but `admin`.
"""

import configparser
import io
import re
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from openmed.files import read_json, write_bytes, write_json
from pipeline.settings import project

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

ADMIN, READER = "admin", "reader"
PASSWORD = "OPENMED_MLFLOW_PASSWORD"
_READING = ("GET", "HEAD", "OPTIONS")
# What is read by POST.
_SEARCHES = re.compile(
    r"/graphql|/(ajax-)?api/\d\.0/?mlflow/[a-z-]+/(search|search-datasets|get-latest-versions)"
)
# MLflow hashes a password anew at every call, which takes up to a second on a busy machine. With this it
# keeps what it found right, under a hash with a key of its own, until the password is changed or time is up.
_KNOWN_FOR_S = 300
_LOCK = threading.Lock()
_READY: set[Path] = set()


def password_file(home: Path) -> Path:
    """Returns the JSON of user -> password of the MLflow server of a state folder."""
    return home / "mlflow" / "passwords.json"


def admin_file(home: Path) -> Path:
    """Returns the file of the password of `admin` alone, for `PASSWORD` with `_FILE`."""
    return home / "mlflow" / "admin_password"


def write_settings(home: Path) -> dict[str, str]:
    """Writes passwords and MLflow's file of settings, for the owner's eyes alone; passwords that exist stay.

    Returns:
        The environment that makes MLflow's server ask for them.
    """
    passwords = password_file(home)
    passwords.parent.mkdir(parents=True, exist_ok=True)
    passwords.parent.chmod(0o700)
    known = read_json(passwords) if passwords.exists() else {}
    if missing := {ADMIN, READER} - set(known):
        known |= {user: secrets.token_urlsafe(18) for user in missing}
        write_json(passwords, known)
    passwords.chmod(0o600)
    write_bytes(admin_file(home), known[ADMIN].encode())
    admin_file(home).chmod(0o600)
    settings, text = configparser.RawConfigParser(), io.StringIO()
    settings["mlflow"] = {
        "default_permission": "READ",
        "database_uri": project.sqlite_address(passwords.with_name("auth.db"), "+pysqlite"),
        "admin_username": ADMIN,
        # Read once, when there are no users yet.
        "admin_password": known[ADMIN],
        "authorization_function": f"{__name__}:authenticate",
        "auth_cache_ttl_seconds": str(_KNOWN_FOR_S),
    }
    settings.write(text)
    file = passwords.with_name("auth.ini")
    # MLflow reads % as the start of a template.
    write_bytes(file, text.getvalue().replace("%", "%%").encode())
    file.chmod(0o600)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        # What MLflow has no rule for is refused to all but the administrator.
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
    }


def authenticate() -> "Authorization | Response":
    """Checks who asks and whether the account may; MLflow's server calls it at every request."""
    from flask import Response, request
    from mlflow.server.auth import authenticate_request_basic_auth, make_forbidden_response

    _set_users(project.home())
    who = authenticate_request_basic_auth()
    if isinstance(who, Response) or who.username == ADMIN or _reads(request.method, request.path):
        return who
    return make_forbidden_response()


def _reads(method: str, path: str) -> bool:
    return method in _READING or (method == "POST" and _SEARCHES.fullmatch(path) is not None)


def _set_users(home: Path) -> None:
    """Makes the users, or gives them the passwords that stand in the file, once in a process."""
    from mlflow.server.auth import store

    with _LOCK:
        if home in _READY:
            return
        for user, password in read_json(password_file(home)).items():
            if not store.has_user(user):
                store.create_user(user, password, is_admin=user == ADMIN)
            elif not store.authenticate_user(user, password):
                store.update_user(user, password)
        _READY.add(home)
