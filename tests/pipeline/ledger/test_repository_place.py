"""Where the record is: the same place for every command, or none where git refuses the project."""

import pytest

from openmed.errors import OpenMedError
from pipeline.ledger import decisions, repository
from tests.pipeline.ledger.conftest import SHOWN, at, git, log


@pytest.mark.parametrize("why", ["owner", "settings", "HEAD"])
def test_a_git_that_refuses_the_project_begins_no_second_record(hosts, monkeypatch, tmp_path, why):
    at(hosts[0], monkeypatch)
    decisions.show("1", SHOWN)
    repository._git_folder.cache_clear()
    with monkeypatch.context() as patch:
        if why == "owner":
            patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        elif why == "settings":
            (tmp_path / "gitconfig").write_text("[broken")
            patch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        else:
            (hosts[0] / "project/.git/HEAD").rename(tmp_path / "HEAD")
        with pytest.raises(OpenMedError, match=r"project: fatal: (detected dubious|bad config|not a git)"):
            decisions.show("1", SHOWN)
    assert list((hosts[0] / "home").glob("record.git")) == []
    assert len(log(hosts[0] / "project") if why != "HEAD" else [1]) == 1


def test_the_first_command_of_a_new_project_uses_the_place_of_all_later_ones(three, tmp_path, monkeypatch):
    project = tmp_path / "new"
    project.mkdir()
    (project / "dvc.yaml").write_text("stages: {}\n")
    git(project, "init", "--quiet")
    state = project / ".openmed"
    monkeypatch.setenv("OPENMED_PROJECT", str(project))
    monkeypatch.setenv("OPENMED_HOME", str(state))
    first = repository.name()
    state.mkdir()
    repository._git_folder.cache_clear()
    assert first == repository.name() == f"the branch {repository.BRANCH} of {project / '.git'}"


def test_options_of_the_address_of_a_store_do_not_move_the_record(three, tmp_path, monkeypatch):
    decisions.show("1", SHOWN)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{three}/mlflow.db?timeout=3&vfs=a/b")
    assert repository.name().endswith(f"{three}/record.git")
