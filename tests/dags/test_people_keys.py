"""Signed decisions under Airflow, on a real registry: what a reviewer does where the plan lists keys."""

# Before a test sets another project: the DAG reads the plan of its own.
import promote
import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException
from people import Answer

from openmed.errors import BadInput
from pipeline import ledger, registry
from pipeline.ledger import Caller
from pipeline.promotion import actions
from tests.conftest import write_plan
from tests.dags.runs import Handed, keep, response
from tests.dags.test_dags import dags  # noqa: F401
from tests.pipeline.conftest import make_workspace, migrated, register, store  # noqa: F401
from tests.pipeline.keys import make_key, needs_openssh

pytestmark = needs_openssh
ACCOUNTS = {"clinical": ["ada"], "technical": ["ben"], "hold": ["ada"]}


@pytest.fixture
def keys(store, tmp_path, monkeypatch):  # noqa: F811
    """Keys of two people; version 1 comes with a plan by which they sign, each under an account."""
    import host

    monkeypatch.setattr(host, "HOME", store)
    monkeypatch.setattr(host, "PROJECT", tmp_path)
    monkeypatch.setenv("OPENMED_PROJECT", "")
    made = {name: make_key(tmp_path / "keys", name) for name in ("ada", "ben")}
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    write_plan(workspace)
    plan = yaml.safe_load((workspace / "change_plan.yaml").read_text())
    plan["protocol"]["keys"] = {"clinical": [made["ada"][1]], "technical": [made["ben"][1]]}
    plan["protocol"]["accounts"] = ACCOUNTS
    (workspace / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    register(make_workspace(workspace), started_by="eve")
    return {name: key for name, (key, _) in made.items()}


def sign(role, name, key):
    actions.sign("1", role=role, by=name, caller=Caller({"system": "ward"}, key))


def judged():
    """What the task `gate` hands on of version 1."""
    return Handed(gate=actions.gate("1").to_json() | {"refused": [], "films_markdown": ""})


def test_a_yes_counts_in_airflow_when_it_was_signed_in_the_name_of_the_account(keys, dags, monkeypatch):  # noqa: F811
    handed = judged()
    assert handed.written["gate"]["accounts"] == ACCOUNTS
    review = dags["promote"].get_task("review.clinical")
    command = "openmed registry sign 1 --as clinical --by"
    assert f"`{command} NAME --key PATH`" in review.question(handed)[1]
    yes = Answer.of(response(name="ada"), "clinical", ACCOUNTS)
    with pytest.raises(BadInput, match=f"lacks the signature of ada as clinical: .*; `{command} 'ada' --key"):
        review.check(yes, handed)
    sign("clinical", "ada", keys["ada"])
    review.check(yes, handed)
    keep(monkeypatch, "1", clinical=response(name="ada"), technical=response(name="ben"))
    with pytest.raises(AirflowFailException, match="lacks the signature of ben as technical"):
        promote.promote.function(ti=handed)
    assert ledger.champion() is None
    sign("technical", "ben", keys["ben"])
    done = promote.promote.function(ti=handed)
    assert done["content"]["approvals"] == {"clinical": "ada", "technical": "ben"}
    assert set(done["content"]["signatures"]) == {"clinical", "technical"}
    assert ledger.champion() == "1" and registry.verify("1")[-1].problem is None


def test_a_hold_asks_for_a_signed_release_and_takes_it_once_it_is_given(keys, dags, monkeypatch):  # noqa: F811
    import hold

    for role, name in (("clinical", "ada"), ("technical", "ben")):
        sign(role, name, keys[name])
    people = {"clinical": "ada", "technical": "ben"}
    actions.promote("1", approved_by=people, comment="", expected_champion=None)
    ledger.hold("1", by=ledger.MONITORING, reason="drift")
    told = {"version": "1", "sentence": "It drifts.", "page": "p", "accounts": actions.accounts("1")}
    ask, handed = dags["hold"].get_task("ask"), Handed(tell=told)
    command = "openmed registry release 1 --by NAME --reason TEXT --key PATH"
    assert f"`{command}`, then answer Release" in ask.question(handed)[1]
    released = response(hold.RELEASE, "ada", "checked")
    with pytest.raises(BadInput, match="ben answered as hold and is not named for it"):
        Answer.of(response(hold.RELEASE, "ben", "checked"), "hold", told["accounts"])
    with pytest.raises(BadInput, match=f"lists keys: first sign with `{command}`"):
        ask.check(Answer.of(released, "hold", told["accounts"]), handed)
    ask.check(Answer.of(response(hold.KEEP, "ada"), "hold", told["accounts"]), handed)
    ledger.release("1", by="ada", reason="by hand", caller=Caller({"system": "ward"}, keys["ada"]))
    ask.check(Answer.of(released, "hold", told["accounts"]), handed)
    keep(monkeypatch, "1", ask=released)
    assert hold.release.function(ti=handed)["content"]["reason"] == "by hand"
    assert ledger.on_hold() == {} and registry.verify("1")[-1].problem is None
