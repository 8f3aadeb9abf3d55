"""Signatures under decisions: whose they are, what they hold for, and that nothing else passes for them."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from openmed.errors import BadInput, ResourceError
from openmed.files import sha256_file
from pipeline import ledger
from pipeline.ledger import record, signatures
from pipeline.ledger.entry import PROMOTED, SIGNED
from pipeline.tracking.store import connect
from tests.pipeline.keys import make_key, needs_openssh

pytestmark = needs_openssh
ROLES = {"clinical": "Reads films.", "technical": "Runs the pipeline."}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Name -> key and line of three people."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("adams", "baker", "eve")}


@pytest.fixture
def basis(keys, three):
    """What the gates say of version 2, after whose plan both roles sign."""
    listed = {"clinical": [keys["adams"][1]], "technical": [keys["baker"][1], keys["adams"][1]]}
    options = {"plan_sha256": "1" * 64, "keys": listed}
    return ledger.Basis("2", "PASS", None, "0" * 64, ROLES, "Eve Stone", None, **options)


def sign(basis, keys, role, by, person):
    caller = ledger.Caller({"system": person}, keys[person][0])
    return ledger.sign(basis.version, role=role, by=by, caller=caller, judge=lambda: basis)


def promote(basis, people=None, caller=None):
    people = people or {"clinical": "Dr Adams", "technical": "Ms Baker"}
    return ledger.promote(
        basis.version,
        approval=ledger.Approval.of(people, "", caller),
        expected_champion=basis.champion,
        expected_model=None,
        judge=lambda: basis,
    )


def sign_both(basis, keys):
    sign(basis, keys, "clinical", "Dr Adams", "adams")
    sign(basis, keys, "technical", "Ms Baker", "baker")


def test_a_version_is_promoted_when_every_role_has_signed_ahead(basis, keys):
    with pytest.raises(BadInput, match=r"lacks the signature of Dr Adams as clinical: .*needs a signature"):
        promote(basis)
    sign(basis, keys, "clinical", "Dr Adams", "adams")
    with pytest.raises(BadInput, match="lacks the signature of Ms Baker as technical"):
        promote(basis)
    assert ledger.champion() is None
    sign(basis, keys, "technical", "Ms Baker", "baker")
    entry = promote(basis, {"clinical": "dr  adams", "technical": "Ms Baker"})
    signed = entry.content["signatures"]
    assert {role: given["signer"] for role, given in signed.items()} == {
        "clinical": "adams@hospital.example",
        "technical": "baker@hospital.example",
    }
    prints = [
        subprocess.run(["ssh-keygen", "-lf", keys[name][0]], capture_output=True, text=True).stdout
        for name in ("adams", "baker")
    ]
    assert [given["key"] for given in signed.values()] == [each.split()[1] for each in prints]
    signatures.check_entry(ledger.history(), entry, basis.keys)
    told = [what for _, what in ledger.story("2")]
    assert told[0].startswith("signed by Dr Adams as clinical (adams@hospital.example, key SHA256:")
    assert "(clinical signed by adams@hospital.example, key SHA256:" in told[2]


def test_what_is_signed_can_be_checked_with_openssh_alone(basis, keys, tmp_path):
    content = sign(basis, keys, "clinical", "Dr Adams", "adams").content
    text = basis.text([], "clinical", "Dr Adams")
    assert json.loads(text) == {
        "decision": "promoted",
        "version": "2",
        "model_sha256": "0" * 64,
        "verdict": "PASS",
        "plan_sha256": "1" * 64,
        "role": "clinical",
        "name": "Dr Adams",
        "champion": None,
        "champion_since_entry": None,
    }
    (tmp_path / "signature").write_text(content["signature"])
    (tmp_path / "allowed").write_text(keys["adams"][1] + "\n")
    command = "ssh-keygen -Y verify -f allowed -I adams@hospital.example -n openmed-approval -s signature"
    subprocess.run(command.split(), cwd=tmp_path, input=text.encode(), check=True, capture_output=True)


@pytest.mark.parametrize(
    "other",
    [
        {"version": "3"},
        {"model_sha256": "2" * 64},
        {"plan_sha256": "2" * 64},
    ],
)
def test_a_signature_holds_for_no_other_version_model_or_plan(basis, keys, other):
    sign_both(basis, keys)
    with pytest.raises(BadInput, match="lacks the signature of Dr Adams as clinical"):
        promote(replace(basis, **other))
    # Nor where somebody copies the entries to that version.
    with connect() as client:
        for entry in [each for each in ledger.history() if each.event == SIGNED]:
            record.append(client, ledger.history(), SIGNED, other.get("version", "2"), entry.content)
    with pytest.raises(BadInput, match="it is no signature under this decision"):
        promote(replace(basis, **other))
    assert ledger.champion() is None


def test_a_signature_holds_for_no_other_role_or_person(basis, keys):
    entry = sign(basis, keys, "technical", "Dr Adams", "adams")
    with connect() as client:
        record.append(client, ledger.history(), SIGNED, "2", {**entry.content, "role": "clinical"})
    with pytest.raises(BadInput, match="it is no signature under this decision"):
        promote(basis, {"clinical": "Dr Adams", "technical": "Ms Baker"})
    with connect() as client:
        record.append(client, ledger.history(), SIGNED, "2", {**entry.content, "by": "Ms Baker"})
    sign(basis, keys, "clinical", "Dr Adams", "adams")
    with pytest.raises(BadInput, match="signature of Ms Baker as technical: it is no signature"):
        promote(basis)


def test_a_key_that_the_plan_does_not_list_for_the_role_signs_nothing(basis, keys):
    with pytest.raises(BadInput, match="by a key that the change plan does not list"):
        sign(basis, keys, "clinical", "Ms Baker", "baker")
    with pytest.raises(BadInput, match="by a key that the change plan does not list"):
        sign(basis, keys, "clinical", "Dr Adams", "eve")
    assert ledger.history() == []


def test_one_key_signs_for_one_role(basis, keys):
    sign(basis, keys, "clinical", "Dr Adams", "adams")
    sign(basis, keys, "technical", "Ms Baker", "adams")
    with pytest.raises(BadInput, match="one key or person signed for two roles"):
        promote(basis)


def test_a_signature_is_spent_when_the_champion_has_changed(basis, keys):
    first = replace(basis, version="1", keys={})
    promote(first)
    later = replace(basis, champion="1")
    sign_both(later, keys)
    promote(later)
    key = ledger.Caller({}, keys["adams"][0])
    ledger.roll_back(by="Dr Adams", reason="too many alarms", check=lambda version: None, caller=key)
    assert ledger.champion() == "1"
    with pytest.raises(BadInput, match="it is no signature under this decision as it stands now: sign again"):
        promote(later)
    sign_both(later, keys)
    promote(later)
    assert ledger.champion() == "2"


def test_who_started_the_retraining_signs_nothing(basis, keys):
    listed = replace(basis, keys={"clinical": [keys["eve"][1]]}, started_by="eve")
    with pytest.raises(BadInput, match=r"eve@hospital.example started the retraining of version 2"):
        sign(listed, keys, "clinical", "Dr Adams", "eve")


def test_a_signed_yes_may_be_typed_by_anybody_and_an_unsigned_not_by_the_starter(basis, keys):
    mixed, starter = (
        replace(basis, keys={"clinical": [keys["adams"][1]]}),
        ledger.Caller({"system": "eve-stone"}),
    )
    sign(mixed, keys, "clinical", "Dr Adams", "adams")
    with pytest.raises(
        BadInput, match="under the login eve-stone, which cannot approve it in the name of Ms Baker:"
    ):
        promote(mixed, caller=starter)
    sign(mixed, keys, "technical", "Ms Baker", "baker")
    entry = promote(mixed, caller=starter)
    # The plan lists no key for this role: the signature is shown for what it is.
    assert "signer" not in entry.content["signatures"]["technical"]
    assert "which the plan does not list" in ledger.story("2")[-1][1]


def test_a_list_without_a_key_lets_nobody_through_and_says_how_to_add_one(basis, keys):
    empty = replace(basis, keys={"clinical": []})
    for attempt in (lambda: promote(empty), lambda: sign(empty, keys, "clinical", "Dr Adams", "adams")):
        with pytest.raises(
            BadInput, match=r"lists no key: put the line that `echo .*pub\)` prints into its list"
        ):
            attempt()


@pytest.mark.parametrize("decision", ["release", "adopt", "repair", "roll_back"])
def test_other_decisions_are_signed_where_the_champions_plan_lists_keys(
    basis, keys, decision, monkeypatch, tmp_path
):
    from pipeline.ledger import decisions

    promote(replace(basis, version="1", keys={}))
    later = replace(basis, champion="1")
    sign_both(later, keys)
    promote(later)
    # A hold is for everybody.
    ledger.hold("2", by="Dr Brown", reason="wrong scanner")
    (tmp_path / "plan").write_text("a plan")
    monkeypatch.setattr(decisions, "artifact", lambda version, name: tmp_path / "plan")
    if decision == "repair":
        with connect() as client:
            client.delete_registered_model_alias("openmed-cxr", "champion")

    def decide(**caller):
        place = {"repair": (), "roll_back": ()}.get(decision, ("2",))
        check = {"check": lambda version: None} if decision == "roll_back" else {}
        return getattr(ledger, decision)(*place, by="Dr Adams", reason="checked", **check, **caller)

    with pytest.raises(BadInput, match="champion's change plan lists keys: sign this on the command line"):
        decide()
    with pytest.raises(BadInput, match="by a key that the change plan does not list"):
        decide(caller=ledger.Caller({}, keys["eve"][0]))
    entry = decide(caller=ledger.Caller({}, keys["baker"][0]))
    assert entry.content["signer"] == "baker@hospital.example"
    signatures.check_entry(ledger.history(), entry, {})
    forged = replace(entry, content={**entry.content, "reason": "another"})
    with pytest.raises(BadInput, match="it is no signature under this decision"):
        signatures.check_entry(ledger.history(), forged, {})
    unsigned = replace(
        entry, content={key: value for key, value in entry.content.items() if key != "signature"}
    )
    with pytest.raises(BadInput, match="needs a signature"):
        signatures.check_entry(ledger.history(), unsigned, {})


def test_an_entry_that_was_forged_is_found_by_its_signatures(basis, keys):
    sign_both(basis, keys)
    entry = promote(basis)
    given, history = entry.content["signatures"], ledger.history()
    swapped = {"clinical": given["technical"], "technical": given["clinical"]}
    for content, problem in (
        ({"signatures": {"clinical": given["clinical"]}}, "needs a signature"),
        ({"signatures": swapped}, "does not list|no signature under"),
        ({"model_sha256": "3" * 64}, "no signature under"),
        ({"verdict": "FAIL"}, "no signature under"),
        ({"plan_sha256": "3" * 64}, "no signature under"),
        ({"keys": {"clinical": [keys["eve"][1]]}}, "was not held against the keys"),
        ({"keys": {}}, "was not held against the keys"),
    ):
        with pytest.raises(BadInput, match=problem):
            signatures.check_entry(history, replace(entry, content={**entry.content, **content}), basis.keys)
    old = replace(entry, content={"verdict": "PASS", "model_sha256": "0" * 64})
    signatures.check_entry(history, old, {})
    assert old.event == PROMOTED


def test_a_plan_that_lists_no_keys_carries_a_promotion_only_once_its_adoption_is_signed(
    basis, keys, monkeypatch, tmp_path
):
    from pipeline.ledger import decisions

    sign_both(basis, keys)
    promote(basis)
    (tmp_path / "plan").write_text("a plan without keys")
    monkeypatch.setattr(decisions, "artifact", lambda version, name: tmp_path / "plan")
    plan = sha256_file(tmp_path / "plan")
    # As if whoever can write the record had judged it.
    keyless = replace(basis, version="3", champion="2", keys={}, plan_sha256=plan)
    promoted = promote(keyless)
    with pytest.raises(BadInput, match="the change plan of version 3 was not adopted before it was promoted"):
        signatures.check_entry(ledger.history(), promoted, {})
    ledger.roll_back(by="Dr Adams", reason="no plan", check=lambda version: None)
    adoption = ledger.adopt("3", by="Dr Adams", reason="ok", caller=ledger.Caller({}, keys["adams"][0]))
    promoted = promote(keyless)
    history = ledger.history()
    signatures.check_entry(history, promoted, {})
    content = {key: value for key, value in adoption.content.items() if key != "signature"}
    history[adoption.number - 1] = replace(adoption, content=content)
    with pytest.raises(BadInput, match="needs a signature"):
        signatures.check_entry(history, promoted, {})


def test_a_key_holds_as_long_as_the_plan_says_and_what_it_signed_for_good(keys):
    text, (key, line) = "text\n", keys["adams"]
    name, _, public = line.partition(" ")
    signature = signatures.sign(text, key)
    ended = [f'{name} valid-before="20261101" {public}']
    with pytest.raises(BadInput, match=r"does not list for this .*expired"):
        signatures.signer(text, signature, ended)
    assert signatures.signer(text, signature, ended, "2026-10-31T23:59:59Z").name == name
    with pytest.raises(BadInput, match="expired"):
        signatures.signer(text, signature, ended, "2026-11-01T00:00:01Z")


def test_what_cannot_sign_says_so_in_one_sentence(keys, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"there is no key .*none: `ssh-keygen -t ed25519` makes one"):
        signatures.sign("text", tmp_path / "none")
    (tmp_path / "odd").write_text("no key\n")
    with pytest.raises(BadInput, match="odd does not sign"):
        signatures.sign("text", tmp_path / "odd")
    with pytest.raises(BadInput):
        signatures.signer("text", "no signature", [keys["adams"][1]])
    monkeypatch.setenv("PATH", str(Path(tmp_path)))
    with pytest.raises(ResourceError, match="apt-get install openssh-client"):
        signatures.sign("text", keys["adams"][0])
