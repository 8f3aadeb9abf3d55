import subprocess
import sys

import pytest
import yaml

from openmed.errors import BadInput, IntegrityError
from pipeline.tools.dvc_lock import check_outputs, dvc_md5, outputs


def test_files_and_folders_have_the_md5_that_dvc_gives_them(tmp_path):
    (tmp_path / "folder/below").mkdir(parents=True)
    for name, content in (
        ("folder/b.json", b"{}"),
        ("folder/below/a b.bin", bytes(range(256))),
        ("one", b"x"),
    ):
        (tmp_path / name).write_bytes(content)

    def dvc(*arguments):
        subprocess.run([sys.executable, "-m", "dvc", *arguments, "-q"], cwd=tmp_path, check=True)

    dvc("init", "--no-scm")
    dvc("add", "folder", "one")
    for name in ("folder", "one"):
        written = yaml.safe_load((tmp_path / f"{name}.dvc").read_text())["outs"][0]["md5"]
        assert dvc_md5(tmp_path / name) == written


def test_an_output_that_changed_or_is_missing_is_named(tmp_path):
    (tmp_path / "out").write_text("a")
    lock = {"stages": {"split": {"outs": [{"path": "out", "md5": dvc_md5(tmp_path / "out")}]}}}
    check_outputs(tmp_path, lock, "split")
    (tmp_path / "out").write_text("b")
    with pytest.raises(IntegrityError, match="out is not what split wrote"):
        check_outputs(tmp_path, lock, "split")
    (tmp_path / "out").unlink()
    with pytest.raises(IntegrityError, match="out is not what split wrote"):
        check_outputs(tmp_path, lock, "split")


def test_a_stage_that_never_ended_is_named():
    for lock in ({}, {"stages": {}}, {"stages": {"split": {"cmd": "x"}}}):
        with pytest.raises(BadInput, match="knows no outputs of split"):
            outputs(lock, "split")
