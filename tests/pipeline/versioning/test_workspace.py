"""Workspaces of scheduled runs, on a real git and DVC repository."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from dulwich import porcelain

from openmed.errors import BadInput, ResourceError
from pipeline.settings.project import checkpoint_folder
from pipeline.versioning import workspace

PARAMS = """\
# kept
run:
  seed: 1  # the seed
  device: cpu
train:
  learning_rate: 1e-4
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A committed project with two films in the cache and on a remote named by a relative path."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("checkout") / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    with Repo.init(str(folder)) as repo:
        (folder / "data").mkdir()
        for name in ("a", "b"):
            (folder / "data" / name).write_text(name)
        (folder / "params.yaml").write_text(PARAMS)
        (folder / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo one\n")
        config = "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../storage\n"
        (folder / ".dvc" / "config").write_text(config)
    with Repo(str(folder)) as repo:
        repo.add(str(folder / "data"))
        repo.push()
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


@pytest.fixture
def unpushed(project):
    """Takes the data out of the cache for one test."""
    cache = project / ".dvc" / "cache"
    cache.rename(project / "hidden")
    yield project
    if cache.exists():
        subprocess.run(["rm", "-rf", str(cache)], check=True)
    (project / "hidden").rename(cache)


def test_a_workspace_holds_the_revision_and_its_data(project, tmp_path):
    path = workspace.create(project, "HEAD", "manual__2026-01-04T02:00:00+00:00", tmp_path)
    assert path.parent == tmp_path / "runs"
    assert ":" not in path.name
    assert sorted(file.name for file in (path / "data").iterdir()) == ["a", "b"]
    assert workspace.commit_of(path) == git(project, "rev-parse", "HEAD")
    config = (path / ".dvc" / "config.local").read_text()
    assert str(project / ".dvc" / "cache") in config
    assert git(path, "status", "--porcelain") == ""
    workspace.remove(project, path)
    assert not path.exists()
    assert str(path) not in git(project, "worktree", "list")
    workspace.remove(project, path)


def test_a_workspace_holds_the_external_sets_of_its_revision(project, tmp_path):
    from pipeline.versioning.external_sets import external_sets

    first = git(project, "rev-parse", "HEAD")
    project = shutil.copytree(project, tmp_path / "copy")
    (project / "external" / "nih").mkdir(parents=True)
    (project / "external" / "nih" / "films.csv").write_text("a set")
    (project / "external" / ".gitignore").write_text("/*/\n")
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "external/nih"], cwd=project, check=True)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "a set")
    path = workspace.create(project, "HEAD", "with a set", tmp_path)
    assert external_sets(path) == {"nih": path / "external" / "nih"}
    assert external_sets(workspace.create(project, first, "before it", tmp_path)) == {}


def test_writing_into_a_workspace_as_root_leaves_the_cache_alone(project, tmp_path):
    path = workspace.create(project, "HEAD", "run", tmp_path)
    if os.geteuid() == 0:
        (path / "data" / "a").write_text("changed")
    cached = [f for f in (project / ".dvc" / "cache").rglob("*") if f.is_file() and f.suffix != ".dir"]
    assert sorted(file.read_text() for file in cached) == ["a", "b"]


def test_a_retry_keeps_the_workspace_and_its_commit_although_head_moved(project, tmp_path):
    path = workspace.create(project, "HEAD", "run", tmp_path)
    first = workspace.commit_of(path)
    (path / "made").write_text("by a stage")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "moved on")
    assert workspace.create(project, "HEAD", "run", tmp_path) == path
    assert workspace.commit_of(path) == first
    assert (path / "made").exists()
    with pytest.raises(
        BadInput, match=r"began here at commit \w{40} \(HEAD\), not at HEAD~1; start a new run"
    ):
        workspace.create(project, "HEAD~1", "run", tmp_path)


def test_a_half_made_workspace_is_made_again(project, tmp_path):
    half = workspace.path_of("run", tmp_path)
    half.mkdir(parents=True)
    (half / ".git").write_text("gitdir: /nowhere")
    assert (workspace.create(project, "HEAD", "run", tmp_path) / "data" / "a").read_text() == "a"


def test_a_workspace_whose_making_was_cut_off_is_made_again(project, tmp_path):
    path = workspace.create(project, "HEAD", "run", tmp_path)
    # As a power cut leaves it: git's own lock of a worktree that it is making, and files not written yet.
    Path(git(path, "rev-parse", "--absolute-git-dir"), "locked").write_text("initializing\n")
    (path / "params.yaml").unlink()
    workspace.create(project, "HEAD", "run", tmp_path)
    assert (path / "params.yaml").read_text() == PARAMS and git(path, "status", "--porcelain") == ""
    workspace.remove(project, path)
    assert str(path) not in git(project, "worktree", "list")


def test_data_that_is_not_cached_is_pulled(unpushed, tmp_path):
    path = workspace.create(unpushed, "HEAD", "run", tmp_path)
    assert (path / "data" / "b").read_text() == "b"


def test_data_that_is_nowhere_is_one_clear_sentence(unpushed, tmp_path):
    storage = unpushed.parent / "storage"
    storage.rename(storage.with_name("gone"))
    try:
        with pytest.raises(ResourceError, match="neither in the DVC cache nor whole on a remote") as refusal:
            workspace.create(unpushed, "HEAD", "run", tmp_path)
        assert "\n" not in str(refusal.value)
    finally:
        if storage.exists():
            subprocess.run(["rm", "-rf", str(storage)], check=True)
        storage.with_name("gone").rename(storage)


def test_the_project_may_be_a_submodule(project, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    git(whole, "init", "--quiet")
    git(whole, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", f"file://{project}", "part")
    part = whole / "part"
    # Relative in the project, the address leads elsewhere from here.
    remote = f"['remote \"store\"']\n    url = {project.parent}/storage\n"
    (part / ".dvc/config.local").write_text(remote)
    for run in ("first", "second"):
        path = workspace.create(part, "HEAD", run, tmp_path / "home")
        assert (path / "data/a").read_text() == "a"
        assert git(path, "rev-parse", "--show-toplevel") == str(path)
        assert git(path, "status", "--porcelain") == ""
    # Everything that reads the submodule still finds its files: git here, in the whole, and DVC's libraries.
    assert git(part, "rev-parse", "--show-toplevel") == str(part)
    assert git(part, "status", "--porcelain") == ""
    assert git(whole, "submodule", "status").split()[0].lstrip("+") == git(part, "rev-parse", "HEAD")
    assert porcelain.status(str(part)).unstaged == []


def test_a_copied_project_makes_its_own_workspace_and_leaves_that_of_the_original(project, tmp_path):
    home = project / ".openmed"
    path = workspace.create(project, "HEAD", "run", home)
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)
    before = {file: file.read_bytes() for file in (project / ".git/worktrees").rglob("*") if file.is_file()}
    own = workspace.create(copy, "HEAD", "run", copy / ".openmed")
    assert own == copy / ".openmed/runs/run"
    assert git(own, "rev-parse", "--absolute-git-dir").startswith(str(copy))
    assert str(copy / ".dvc/cache") in (own / ".dvc/config.local").read_text()
    after = {file: file.read_bytes() for file in (project / ".git/worktrees").rglob("*") if file.is_file()}
    assert after == before
    workspace.remove(copy, own)
    assert path.is_dir() and workspace.commit_of(path) == git(project, "rev-parse", "HEAD")
    workspace.remove(project, path)
    shutil.rmtree(home)


def test_a_project_of_any_name_has_workspaces(project, tmp_path):
    strange = tmp_path / "my project é #1 100%20?x=y"
    shutil.copytree(project, strange, symlinks=True)
    path = workspace.create(strange, "HEAD", "run", strange / ".openmed")
    assert (path / "data/a").read_text() == "a" and git(path, "status", "--porcelain") == ""


def test_a_project_without_a_commit_is_one_clear_sentence(tmp_path):
    repo = tmp_path / "fresh"
    repo.mkdir()
    git(repo, "init", "--quiet")
    with pytest.raises(BadInput, match="has no commit yet: commit the project first"):
        workspace.create(repo, "HEAD", "run", tmp_path / "home")


def test_an_unknown_revision_is_refused(project, tmp_path):
    with pytest.raises(BadInput, match="revision 'nowhere' is not in"):
        workspace.create(project, "nowhere", "run", tmp_path)
    with pytest.raises(BadInput, match="revision '--help' is not in"):
        workspace.create(project, "--help", "run", tmp_path)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a git checkout"):
        workspace.create(tmp_path, "HEAD", "run", tmp_path / "home")


def test_a_revision_without_data_is_refused(tmp_path):
    repo = tmp_path / "bare"
    repo.mkdir()
    git(repo, "init", "--quiet")
    git(repo, "commit", "--quiet", "--allow-empty", "--message", "empty")
    with pytest.raises(BadInput, match=r"holds no \.dvc"):
        workspace.create(repo, "HEAD", "run", tmp_path)


def test_no_git_is_one_clear_sentence(project, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="git was not found"):
        workspace.create(project, "HEAD", "run", tmp_path)


def test_variables_of_a_git_hook_do_not_lead_elsewhere(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert len(workspace.commit_of(project)) == 40


def test_ids_that_differ_in_replaced_characters_get_two_folders(tmp_path):
    paths = {workspace.path_of(run_id, tmp_path) for run_id in ("a:b", "a+b", "a-b", "../a-b", "..")}
    assert len(paths) == 5
    assert all(path.parent == tmp_path / "runs" for path in paths)
    with pytest.raises(BadInput, match="not empty"):
        workspace.path_of("", tmp_path)


def test_no_id_can_be_chosen_that_leads_to_the_folder_of_another_run(tmp_path):
    folder = workspace.path_of("scheduled__2026-11-29T02:00:00+00:00", tmp_path)
    assert workspace.path_of(folder.name, tmp_path) != folder
    for others in ("a.json", "a.lock"):
        assert not workspace.path_of(others, tmp_path).name.endswith((".json", ".lock"))
    for longest in (":" + "a" * 249, "a" * 250):
        assert len(workspace.path_of(longest, tmp_path).name) < 230


def test_old_workspaces_are_pruned_and_young_ones_kept(project, tmp_path):
    old = workspace.create(project, "HEAD", "old", tmp_path)
    young = workspace.create(project, "HEAD", "young", tmp_path)
    kept = [checkpoint_folder(tmp_path, path, "vit") for path in (old, young)]
    for folder in kept:
        folder.mkdir(parents=True)
    long_ago = time.time() - 20 * 86_400
    os.utime(old.with_name("old.json"), (long_ago, long_ago))
    assert workspace.prune(project, tmp_path, keep_days=14) == [old]
    assert not old.exists() and young.exists()
    assert [folder.exists() for folder in kept] == [False, True]
    assert workspace.prune(project, tmp_path / "nothing", keep_days=14) == []


def test_a_complete_run_stays_until_the_next_one_is_complete(project, tmp_path):
    first, second, failed = (
        workspace.create(project, "HEAD", name, tmp_path) for name in ("1", "2", "failed.1")
    )
    assert workspace.retire(project, first) == []
    assert workspace.retire(project, second) == [first]
    assert workspace.retire(project, second) == []
    assert second.exists() and failed.exists() and not first.exists()


def test_what_ended_elsewhere_goes_away_but_for_the_newest_that_is_complete(project, tmp_path):
    made = {name: workspace.create(project, "HEAD", name, tmp_path) for name in ("1", "2", "3", "4")}
    for number, name in enumerate(made):
        os.utime(made[name].with_name(f"{name}.json"), (number, time.time() - 100 + number))
    removed = workspace.tidy(project, tmp_path, 14, {"1", "2", "3"}.__contains__)
    assert removed == [made["1"], made["2"]] and made["3"].exists() and made["4"].exists()
    assert workspace.tidy(project, tmp_path, 14, set().__contains__) == []
    # Where another host ran the last task, this one knew no workspace of the run.
    assert workspace.retire(project, workspace.path_of("5", tmp_path)) == [made["3"]]


def test_a_workspace_that_is_whole_is_found_without_dvc_and_one_that_is_not_is_made_whole(
    project, tmp_path, monkeypatch
):
    commit = git(project, "rev-parse", "HEAD")
    path = workspace.create(project, "HEAD", "run", tmp_path, seed=7)
    assert workspace.default_remote(path) == "store"
    monkeypatch.setattr(workspace, "obtain", None)
    assert workspace.find(project, commit, "run", tmp_path, seed=7) == path
    assert workspace.find(project, commit, "run", tmp_path, any_seed=True) == path
    with pytest.raises(BadInput, match=f"\\(HEAD\\), not at {'0' * 40}; start a new run"):
        workspace.find(project, "0" * 40, "run", tmp_path)
    monkeypatch.undo()
    shutil.rmtree(path)
    workspace.find(project, commit, "run", tmp_path, seed=7)
    assert (path / "data/a").exists() and "seed: 7 " in (path / "params.yaml").read_text()
    # The id of a run that was deleted may be that of another one, which began with another seed.
    for seed, text in ((8, PARAMS.replace("seed: 1 ", "seed: 8 ")), (None, PARAMS)):
        assert workspace.find(project, commit, "run", tmp_path, seed=seed) == path
        assert (path / "params.yaml").read_text() == text


def test_set_params_changes_what_is_named_and_nothing_else(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    workspace.set_params(tmp_path, {"run.seed": 7})
    assert (tmp_path / "params.yaml").read_text() == PARAMS.replace("seed: 1 ", "seed: 7 ")
    workspace.set_params(tmp_path, {})
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["run"] == {"seed": 7, "device": "cpu"}


@pytest.mark.parametrize("key", ["run.sead", "sead", "run.seed.deeper", "nobody.seed"])
def test_set_params_refuses_an_unknown_key_and_changes_nothing(tmp_path, key):
    (tmp_path / "params.yaml").write_text(PARAMS)
    with pytest.raises(BadInput, match=f"no setting '{key}'"):
        workspace.set_params(tmp_path, {"run.seed": 7, key: 1})
    assert (tmp_path / "params.yaml").read_text() == PARAMS
    with pytest.raises(BadInput, match="does not exist"):
        workspace.set_params(tmp_path / "absent", {key: 1})


def test_links_are_not_used_as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert workspace.link_types() == ["reflink", "copy"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert workspace.link_types() == ["reflink", "hardlink", "symlink", "copy"]


def test_dvc_is_not_imported_before_it_is_needed():
    code = "import sys, pipeline.versioning.workspace; print('dvc' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
