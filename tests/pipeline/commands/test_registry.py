"""Decisions on the command line: who gives the command, and who is named."""

import os
import pwd

import pytest
import yaml

from pipeline import ledger, registry
from tests.pipeline.commands.test_app import refused
from tests.pipeline.conftest import make_workspace, register
from tests.pipeline.keys import make_key, needs_openssh

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
    assert [link.name for link in registry.verify(version) if link.problem] == ["champion"]


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


@needs_openssh
def test_two_people_sign_and_promote_on_the_command_line(openmed, store, tmp_path, monkeypatch):
    (adams, clinical), (baker, technical) = (make_key(tmp_path / "keys", name) for name in ("adams", "baker"))
    workspace = make_workspace(tmp_path / "workspace")
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["reviewers"]["technical"] = "Runs the pipeline."
    plan["protocol"]["keys"] = {"clinical": [clinical], "technical": [technical]}
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    version = register(workspace).version
    people = ("--by", "clinical=Dr Adams", "--by", "technical=Ms Baker")
    refused(openmed("registry", "promote", version, *people), "lacks the signature of Dr Adams as clinical")
    signing = ("registry", "sign", version, "--as", "clinical", "--by", "Dr Adams", "--key")
    refused(openmed(*signing, baker), "by a key that the change plan does not list")
    code, out, _ = openmed(*signing, adams)
    assert code == 0 and out.startswith("the yes of Dr Adams as clinical to version 1 is signed with SHA256:")
    # The other one promotes, and signs at once.
    promotion = ("registry", "promote", version, *people, "--sign")
    refused(openmed(*promotion, "technical"), "--sign names one key for each role")
    refused(openmed(*promotion, f"nobody={baker}"), "nobody")
    assert openmed(*promotion, f"technical={baker}")[0] == 0
    assert ledger.champion() == version and registry.verify(version)[-1].problem is None
    assert openmed("registry", "hold", version, "--by", "Dr Carr", "--reason", "blurred")[0] == 0
    release = ("registry", "release", version, "--by", "Dr Adams", "--reason", "checked")
    refused(openmed(*release), "the champion's change plan lists keys: sign this on the command line")
    assert openmed(*release, "--key", adams)[0] == 0
    assert [link.problem for link in registry.verify(version)] == [None] * 12
    told = openmed("registry", "show", version)[1]
    assert "clinical signed by adams@hospital.example, key SHA256:" in told

    # A signature that is taken out of the record with everything that holds it is missed by the plan.
    from pipeline.registry import verification

    history = ledger.history()
    forged = next(each for each in history if each.event == "promoted")
    del forged.content["signatures"], forged.content["keys"]
    monkeypatch.setattr(verification.record, "written", lambda shown: [history[0], forged])
    monkeypatch.setattr(verification.mirror, "check", lambda *entries, **complete: None)
    broken = registry.verify(version)[-1]
    assert broken.name == "decisions" and "was not held against the keys of its plan" in broken.problem
