"""Decisions on the command line: who gives the command, and who is named."""

import os
import pwd

import pytest

from pipeline import ledger, registry
from tests.pipeline.commands.test_app import refused
from tests.pipeline.conftest import make_workspace, register

LOGIN = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def version(store, tmp_path):
    return register(make_workspace(tmp_path / "workspace")).version


@pytest.fixture
def started(store, tmp_path):
    """A version whose retraining somebody started under the login of this test."""
    return register(make_workspace(tmp_path / "workspace"), started_by="Eve Stone").version


def test_the_login_is_recorded_beside_the_name_that_is_typed(openmed, version, monkeypatch):
    # What the environment says of the login is not asked.
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert openmed("registry", "promote", version, "--by", "clinical=Dr Adams")[0] == 0
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "adams")
    assert openmed("registry", "hold", version, "--by", "Dr Adams", "--reason", "blurred")[0] == 0
    said = {entry.event: entry.content.get("login") for entry in ledger.history()}
    assert said["promoted"] == {"system": LOGIN}
    assert said["held"] == {"system": LOGIN, "mlflow": "adams"}
    told = openmed("registry", "show", version)[1]
    assert f"promoted by Dr Adams (clinical) as the first champion [login {LOGIN}]\n" in told
    assert f"put on hold by Dr Adams: blurred [login {LOGIN}, mlflow adams]\n" in told
    assert registry.verify(version)[-1].problem is None


def test_who_started_the_retraining_cannot_approve_it_under_another_name(openmed, started, monkeypatch):
    assert ledger.history()[0].content["started_login"] == LOGIN
    assert openmed("registry", "show", started)[1].splitlines()[1].endswith(f" [login {LOGIN}]")
    promotion = ("registry", "promote", started, "--by", "clinical=Dr Adams")
    refused(openmed(*promotion), f"was started under the login {LOGIN}, which cannot approve it")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: pwd.struct_passwd(("adams", *[""] * 6)))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "EVE-STONE")
    refused(openmed(*promotion), "under the login EVE-STONE, which cannot approve it")
    assert ledger.champion() is None
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert openmed(*promotion)[0] == 0
    assert registry.verify(started)[-1].problem is None


@pytest.mark.parametrize("odd", ["Dr\x1b[2KAdams", "Dr \u202eAdams", "Dr Ad\u200bams", "Dr\x00Adams"])
def test_characters_that_show_nothing_are_refused_in_every_text(openmed, version, odd):
    for command in (
        ("promote", version, "--by", f"clinical={odd}"),
        ("promote", version, "--by", "clinical=Dr Adams", "--comment", odd),
        *((verb, version, "--by", odd, "--reason", "why") for verb in ("reject", "adopt", "hold", "release")),
        *(
            (verb, version, "--by", "Dr A", "--reason", odd)
            for verb in ("reject", "adopt", "hold", "release")
        ),
        *((verb, "--by", "Dr A", "--reason", odd) for verb in ("rollback", "repair")),
        *((verb, "--by", odd, "--reason", "why") for verb in ("rollback", "repair")),
    ):
        refused(openmed("registry", *command), "cannot be shown")
    assert [entry.event for entry in ledger.history()] == ["registered"]
