"""Environment variables: one class holds them all, and the docs name the same ones."""

import re
import subprocess
import sys

import pytest

from openmed.errors import BadInput
from pipeline.settings.variables import SECRETS, Variables, variables
from pipeline.tools.terminal import guarded
from tests.conftest import ROOT
from tests.variables_table import PAGE, page_with, table

NAMES = {str(field.validation_alias) for field in Variables.model_fields.values()}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


def test_the_table_in_the_docs_is_that_of_the_class():
    assert PAGE.read_text(encoding="utf-8") == page_with(table()), "python -m tests.variables_table"
    assert set(re.findall(r"OPENMED_[A-Z_]*[A-Z]", table())) == NAMES


def test_the_code_names_no_other_variable():
    files = [path for name in ("openmed", "pipeline", "dags") for path in (ROOT / name).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"OPENMED_[A-Z_]*[A-Z]", path.read_text())}
    assert named <= NAMES | {"OPENMED_REVIEWERS"}


def test_variables_are_read_from_the_environment_alone_and_no_further_file_reads_them():
    # A served model may run where there are no settings, and an error is told before they are read.
    alone = {"pipeline/serving/serving.py", "pipeline/tools/terminal.py"}
    files = [path for name in ("openmed", "pipeline", "dags") for path in (ROOT / name).rglob("*.py")]
    reading = re.compile(r"environ(\.get\(|\[)f?\"OPENMED_\w+\"[\])](?! = )")
    found = {path.relative_to(ROOT).as_posix() for path in files if reading.search(path.read_text())}
    assert found == alone


def test_defaults_hold_where_nothing_or_an_empty_text_is_set(monkeypatch):
    before = variables()
    for name in NAMES:
        monkeypatch.setenv(name, "")
    assert variables() == before
    assert (before.schedule, before.timezone, before.airflow_user) == ("0 2 * * 0", "UTC", "admin")
    assert before.keep_workspaces_days == 14 and before.project is before.home is None


def test_a_change_of_the_environment_is_seen_at_once(monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", "/a")
    assert str(variables().home) == "/a"
    monkeypatch.setenv("OPENMED_HOME", "/b")
    monkeypatch.setenv("openmed_home", "/c")
    assert str(variables().home) == "/b"


@pytest.mark.parametrize(
    ("name", "entry"), [("CLINICAL", "clinical"), ("HOLD", "hold"), ("CLINICAL_SENIOR", "clinical_senior")]
)
def test_who_may_answer_stands_in_the_plan_and_a_variable_of_before_says_so(monkeypatch, name, entry):
    monkeypatch.setenv(f"OPENMED_REVIEWERS_{name}", "")
    variables()
    monkeypatch.setenv(f"OPENMED_REVIEWERS_{name}", "ada, ben")
    said = (
        f"OPENMED_REVIEWERS_{name} is set, .*: name the accounts in protocol.accounts.{entry} of change_plan"
    )
    with pytest.raises(BadInput, match=said):
        variables()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENMED_KEEP_WORKSPACES_DAYS", "a week"),
        ("OPENMED_KEEP_WORKSPACES_DAYS", "-1"),
    ],
)
def test_an_impossible_value_is_one_sentence_that_names_the_variable(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"^{name}: Input should be"):
        variables()
    assert guarded(variables) == 2
    assert capsys.readouterr().err.startswith(f"openmed: {name}: ")


def test_secrets_are_shown_nowhere(monkeypatch):
    for name in ("OPENMED_SITE_SECRET", "OPENMED_ALERT_URL", "OPENMED_AIRFLOW_PASSWORD"):
        monkeypatch.setenv(name, "hidden-value")
    assert "hidden-value" not in f"{variables()!r} {variables()}"
    assert variables().site_secret.get_secret_value() == "hidden-value"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_stand_in_a_file_that_changes(monkeypatch, tmp_path, name):
    field, file = name.removeprefix("OPENMED_").lower(), tmp_path / "secret"
    monkeypatch.setenv(f"{name}_FILE", str(file))
    for secret in ("hidden-value", " with blanks, ü"):
        file.write_text(f"{secret}\n")
        assert getattr(variables(), field).get_secret_value() == secret
        assert secret not in repr(variables())
    monkeypatch.setenv(name, "")
    assert getattr(variables(), field).get_secret_value() == secret


def test_the_secrets_are_the_variables_that_are_shown_nowhere():
    assert set(SECRETS) == {
        "OPENMED_SITE_SECRET",
        "OPENMED_ALERT_URL",
        "OPENMED_AIRFLOW_PASSWORD",
        "OPENMED_MLFLOW_PASSWORD",
    }
    page = PAGE.read_text(encoding="utf-8")
    assert all(page.index(name) < page.index("| Variable |") for name in SECRETS)


def test_a_file_that_holds_no_secret_is_one_sentence_that_shows_none(monkeypatch, tmp_path):
    file = tmp_path / "secret"
    monkeypatch.setenv("OPENMED_ALERT_URL_FILE", str(file))
    with pytest.raises(BadInput, match=r"^OPENMED_ALERT_URL_FILE names .*: No such file"):
        variables()
    file.write_text("\n")
    with pytest.raises(BadInput, match="which is empty: write the secret into it"):
        variables()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot be read: it is no text"):
        variables()
    file.write_text("https://chat.example.org/hook")
    monkeypatch.setenv("OPENMED_ALERT_URL", "https://chat.example.org/other")
    with pytest.raises(BadInput, match="OPENMED_ALERT_URL and OPENMED_ALERT_URL_FILE are both set"):
        variables()


def test_the_command_tells_its_help_without_loading_them():
    code = (
        "import sys; from typer.testing import CliRunner; from pipeline.commands.app import app;"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
        "print(sorted({'pydantic', 'yaml', 'numpy', 'httpx', 'filelock', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
