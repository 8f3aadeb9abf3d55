"""The films of a version on a host that did not train it: real git, DVC and MLflow."""

import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from openmed.errors import BadInput, ResourceError
from openmed.files import sha256_file
from pipeline import registry
from pipeline.promotion.films import films_at_hand
from pipeline.tools.git import git
from pipeline.versioning import workspace
from tests.pipeline.conftest import make_workspace, migrated, store, write_lock  # noqa: F401

GRAPH = """
stages:
  validate:
    cmd: echo
    outs: [artifacts/validate/manifest.parquet]
  split:
    cmd: echo
    outs: [artifacts/split/split.parquet]
  external:
    foreach: [resnet50]
    do:
      cmd: echo
      outs:
        - artifacts/external/${item}/predictions.parquet
"""


@pytest.fixture
def clone(store, tmp_path):  # noqa: F811
    """A checkout of a project whose version 1 was trained on another host, with which it shares remotes."""
    trained = tmp_path / "trained"
    trained.mkdir()
    make_workspace(trained)
    (trained / "dvc.yaml").write_text(GRAPH)
    for name in ("data.dvc", "dvc.lock"):
        (trained / name).unlink()
    git(trained, "init", "--quiet")
    for command in (
        ["init"],
        ["remote", "add", "--default", "store", "../storage"],
        ["add", "data"],
        ["push"],
    ):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=trained, check=True, capture_output=True)
    (trained / ".gitignore").write_text("/data\n/artifacts\n")
    git(trained, "add", "--all")
    git(trained, "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "t")
    write_lock(trained)
    lock = yaml.safe_load((trained / "dvc.lock").read_text())
    for entry in lock["stages"].values():
        entry["cmd"] = "echo"
        for out in entry["outs"]:
            out["hash"] = "md5"
            kept = tmp_path / "storage/files/md5" / out["md5"][:2] / out["md5"][2:]
            if (trained / out["path"]).is_file():
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(trained / out["path"], kept)
    (trained / "dvc.lock").write_text(yaml.safe_dump(lock))
    commit = git(trained, "rev-parse", "HEAD")
    registry.register_candidates(trained, run_key="scheduled__1", revision=commit)
    git(tmp_path, "clone", "--quiet", str(trained), "here")
    trained.rename(tmp_path / "gone")
    return tmp_path / "here"


def test_films_and_what_is_shown_come_from_the_registry_and_the_remotes(clone, tmp_path):
    folder = films_at_hand(clone, tmp_path / "state", "1", at_any_rate=True)
    assert folder == workspace.path_of("scheduled__1", tmp_path / "state")
    films = registry.films_of(folder)
    expected = pd.read_parquet(tmp_path / "gone/artifacts/split/split.parquet")
    assert films["id"].tolist() == expected["id"].tolist()
    for film in films.itertuples():
        assert sha256_file(folder / "data" / film.path) == film.sha256
    assert not (folder / "artifacts/evaluate").exists()
    assert films_at_hand(clone, tmp_path / "state", "1") == folder

    # The remote does not answer, and nothing is left here.
    workspace.remove(clone, folder)
    shutil.rmtree(clone / ".dvc/cache")
    (tmp_path / "storage").rename(tmp_path / "away")
    with pytest.raises(ResourceError, match="neither in the DVC cache nor whole on a remote"):
        films_at_hand(clone, tmp_path / "state", "1", at_any_rate=True)
    assert films_at_hand(clone, tmp_path / "state", "1") is None
    git(clone, "rm", "--quiet", "--cached", ".dvc/config")
    (clone / ".dvc/config").write_text("")
    assert films_at_hand(clone, tmp_path / "state", "1", at_any_rate=True) is None
    with pytest.raises(BadInput, match="has no version 9"):
        films_at_hand(clone, tmp_path / "state", "9")
