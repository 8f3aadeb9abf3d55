import re

import pytest
import yaml

from openmed.errors import BadInput
from pipeline.settings.params import load_params
from pipeline.settings.plan import lax_limits, load_plan, unplanned_changes
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("plan", "params"),
    [("change_plan.yaml", "params.yaml"), ("change_plan.production.yaml", "params.production.yaml")],
)
def test_the_shipped_plans_fit_the_shipped_settings(plan, params):
    plan, params = load_plan(ROOT / plan), load_params(ROOT / params)
    assert list(lax_limits(plan, params.evaluate.floors, params.promotion.margins)) == []
    assert set(plan.protocol.reviewers) == {"clinical", "technical"}


def test_what_may_change_may_and_what_may_not_is_named():
    plan = load_plan(ROOT / "change_plan.yaml")
    before = {
        "train": {"vit": {"weights": "none", "finetune": {"epochs": 3}}},
        "task": {"classes": ["A", "B"]},
    }
    after = {
        "train": {"vit": {"weights": "none", "finetune": {"epochs": 9}}},
        "task": {"classes": ["A", "C"]},
    }
    assert list(unplanned_changes(plan, before, after)) == [
        "the setting task.classes was ['A', 'B'] and is ['A', 'C'], which the plan does not let change"
    ]
    added = {**before, "evaluate": {"floors": {}}}
    assert list(unplanned_changes(plan, before, added)) == [
        "the setting evaluate.floors was not set and is {}, which the plan does not let change"
    ]
    assert list(unplanned_changes(plan, before, before)) == []
    # Where work is done is no change of the model.
    assert list(unplanned_changes(plan, before, {**before, "stages": {"map_over": 4}})) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan["protocol"]["evaluation"].update(looks=0), "protocol.evaluation.looks"),
        (lambda plan: plan["protocol"].update(reviewers={}), "protocol.reviewers"),
        (lambda plan: plan["protocol"].update(reviewers={"Chief!": "x"}), "protocol.reviewers"),
        (lambda plan: plan.update(extra=1), "extra"),
        (
            lambda plan: plan["protocol"]["evaluation"].update(findings={"VIRUS": {"floors": {"auc": 2}}}),
            "findings.VIRUS: floors.auc: Input should be less than or equal to 1",
        ),
        (
            lambda plan: plan["protocol"]["evaluation"].update(findings={"VIRUS": {"looks": 3}}),
            "findings.VIRUS: looks is asked once, of no single finding",
        ),
    ],
)
def test_a_plan_with_impossible_values_is_refused(tmp_path, change, said):
    plan = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    change(plan)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(BadInput, match=said):
        load_plan(tmp_path / "plan.yaml")


def test_a_finding_is_asked_what_the_plan_says_of_it_and_else_what_the_first_is(tmp_path):
    content = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    content["protocol"]["evaluation"]["findings"] = {"VIRUS": {"floors": {"auc": 0.6}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
    plan = load_plan(tmp_path / "plan.yaml")
    first, further = (plan.of_finding(name).protocol.evaluation for name in ("BACTERIA", "VIRUS"))
    assert first == plan.protocol.evaluation
    assert further.floors == {"auc": 0.6}
    assert further.net_benefit == first.net_benefit and further.subgroups == first.subgroups


def test_a_plan_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(BadInput, match="does not exist: a change plan says"):
        load_plan(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("a: [")
    with pytest.raises(BadInput, match="cannot be read"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("value", ["true", "false", "off"])
def test_a_floor_that_is_a_truth_value_is_refused(tmp_path, value):
    text = (ROOT / "change_plan.yaml").read_text()
    path = tmp_path / "change_plan.yaml"
    path.write_text(re.sub(r"(max_calibration_error:) [\d.]+", rf"\1 {value}", text))
    assert path.read_text() != text
    with pytest.raises(BadInput, match=r"max_calibration_error: .* number"):
        load_plan(path)


def test_a_plan_of_before_keeps_the_log_of_answers_for_ever_and_none_for_less_than_six_months(tmp_path):
    path = tmp_path / "change_plan.yaml"
    for name in ("change_plan.yaml", "change_plan.production.yaml"):
        assert load_plan(ROOT / name).protocol.monitoring.keep_answers_days >= 184
    plan = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    plan["protocol"]["monitoring"]["keep_answers_days"] = 183
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(BadInput, match="keep_answers_days"):
        load_plan(path)
    del plan["protocol"]["monitoring"]["keep_answers_days"]
    path.write_text(yaml.safe_dump(plan))
    assert load_plan(path).protocol.monitoring.keep_answers_days is None


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMDoVRJ4kyFpVZ0DV8EQwEjx1yJHHBtZ4iYgLHdQ1x2q"


def with_keys(tmp_path, keys):
    plan = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    plan["protocol"].pop("keys")
    plan["protocol"] |= {} if keys is None else {"keys": keys}
    (tmp_path / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    return load_plan(tmp_path / "change_plan.yaml").protocol.signing


def test_a_role_signs_where_the_plan_has_a_list_of_keys_for_it(tmp_path):
    production = load_plan(ROOT / "change_plan.production.yaml").protocol
    assert production.signing == {"clinical": [], "technical": []}
    assert load_plan(ROOT / "change_plan.yaml").protocol.signing == {}
    assert with_keys(tmp_path, None) == {}
    lines = [
        f"ada@site {KEY}",
        f'ada@site valid-before="20270101",namespaces="openmed-approval" {KEY} her laptop',
    ]
    assert with_keys(tmp_path, {"clinical": lines, "technical": "login"}) == {"clinical": lines}


@pytest.mark.parametrize(
    "line",
    [
        KEY,
        f"* {KEY}",
        f"*@site {KEY}",
        f"!eve,ada {KEY}",
        f"# ada@site {KEY}",
        f"ada@site {KEY}\neve@site {KEY}",
        f'"ada b" {KEY}',
        "ada@site",
        "",
        "ada@site ssh-ed25519 not/base64!",
    ],
)
def test_a_line_that_names_nobody_or_anybody_is_no_key(tmp_path, line):
    with pytest.raises(BadInput, match=r"protocol\.keys\.clinical"):
        with_keys(tmp_path, {"clinical": [line]})


def test_keys_of_a_role_that_the_plan_does_not_have_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"keys\.chief: the plan has no such role among its reviewers"):
        with_keys(tmp_path, {"chief": [f"ada@site {KEY}"]})


def with_accounts(tmp_path, accounts):
    plan = yaml.safe_load((ROOT / "change_plan.yaml").read_text())
    plan["protocol"].pop("accounts")
    plan["protocol"] |= {} if accounts is None else {"accounts": accounts}
    (tmp_path / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    return load_plan(tmp_path / "change_plan.yaml").protocol.answering


def test_the_plan_says_which_accounts_may_answer(tmp_path):
    assert load_plan(ROOT / "change_plan.yaml").protocol.answering == {}
    production = {"clinical": ["reviewer"], "technical": ["engineer"], "hold": ["reviewer", "engineer"]}
    assert load_plan(ROOT / "change_plan.production.yaml").protocol.answering == production
    # A plan of before.
    assert with_accounts(tmp_path, None) == {}
    accounts = {"clinical": ["ada", "ben@site"], "technical": "anyone", "hold": "anyone"}
    assert with_accounts(tmp_path, accounts) == {"clinical": ["ada", "ben@site"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chief": ["ada"]}, r"accounts\.chief: the plan has no such role among its reviewers"),
        ({"chief": "anyone"}, r"accounts\.chief: the plan has no such role among its reviewers"),
        ({"clinical": None}, r"accounts\.clinical: say who may answer, a list of accounts or `anyone`"),
        ({"hold": None}, r"accounts\.hold: say who may answer"),
        ({"clinical": ["ada", "anyone"]}, r"accounts\.clinical: `anyone` stands alone and not in a list"),
        ({"clinical": []}, r"protocol\.accounts\.clinical"),
        ({"clinical": "ada"}, r"protocol\.accounts\.clinical\..*'anyone'"),
        ({"clinical": "Anyone"}, r"protocol\.accounts\.clinical"),
        ({"clinical": [""]}, r"protocol\.accounts\.clinical"),
        ({"clinical": ["ada, ben"]}, r"protocol\.accounts\.clinical"),
        ({"clinical": [7]}, r"protocol\.accounts\.clinical"),
    ],
)
def test_a_mistyped_role_or_account_lets_nobody_answer(tmp_path, change, said):
    accounts = {"clinical": ["ada"], "technical": "anyone", "hold": "anyone"} | change
    with pytest.raises(BadInput, match=said):
        with_accounts(tmp_path, {role: names for role, names in accounts.items() if names is not None})
