"""What a retraining is registered with: the plan and the settings of its commit, and nothing edited since."""

import pytest
import yaml

from openmed.errors import BadInput
from pipeline import registry
from pipeline.tools.git import git
from pipeline.versioning.workspace import set_params
from tests.pipeline.conftest import commit_settings, make_workspace, register


def edited(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def lower_floor(plan):
    plan["protocol"]["evaluation"]["floors"]["auc"] = 0.0


def fewer_reviewers(plan):
    plan["protocol"]["reviewers"] = {"technical": "Runs it."}


def wider_margin(params):
    params["promotion"]["margins"]["auc"] = 0.5


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("change_plan.yaml", lower_floor, "change_plan.yaml of .* is not that of commit .*: commit plan and"),
        ("change_plan.yaml", fewer_reviewers, "change_plan.yaml of .* is not that of commit"),
        (
            "params.yaml",
            wider_margin,
            r"promotion.margins.auc in params.yaml of .* is 0.5, but 0.02 in commit",
        ),
    ],
)
def test_a_plan_or_setting_that_was_edited_after_the_commit_registers_nothing(
    store, tmp_path, name, change, said
):
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    edited(
        workspace / "change_plan.yaml", lambda plan: plan["protocol"]["evaluation"]["floors"].update(auc=0.8)
    )
    revision = commit_settings(workspace)
    edited(workspace / name, change)
    # Git looks away from an edit when it is told to, and shows another object in the place of one.
    git(workspace, "update-index", "--assume-unchanged", name)
    stand_in = git(workspace, "hash-object", "-w", name)
    git(workspace, "replace", git(workspace, "rev-parse", f"{revision}:{name}"), stand_in)
    assert git(workspace, "status", "--porcelain", name) == ""
    with pytest.raises(BadInput, match=said):
        registry.register_candidates(workspace, run_key="run-1", revision=revision)
    assert registry.list_versions() == []
    # What is committed counts, whoever commits it: the record names the revision.
    git(workspace, "update-index", "--no-assume-unchanged", name)
    git(workspace, "replace", "--delete", git(workspace, "rev-parse", f"{revision}:{name}"))
    assert register(workspace).version == "1"


def test_the_seed_of_a_retraining_may_differ_from_that_of_its_commit(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    revision = commit_settings(workspace)
    set_params(workspace, {"run.seed": 7})
    registry.register_candidates(workspace, run_key="run-1", revision=revision)
    assert registry.get_version("1").tags["revision"] == revision


def test_a_workspace_on_another_commit_than_its_run_registers_nothing(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws", ("vit",))
    first = commit_settings(workspace)
    edited(workspace / "change_plan.yaml", fewer_reviewers)
    second = commit_settings(workspace)
    assert first != second
    with pytest.raises(BadInput, match=f"stands on commit {second}, not on {first}"):
        registry.register_candidates(workspace, run_key="run-1", revision=first)
