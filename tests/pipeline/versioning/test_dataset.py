"""The data folder is replaced in one move or not at all, and leaves the sample's remote."""

from pathlib import Path

import pytest
import yaml

from openmed.errors import BadInput
from pipeline.versioning.dataset import new_folder, own_remote

LIST = "path,label,patient\nfilm,NORMAL,p1\n"


def fill(folder, text="new"):
    folder.mkdir()
    (folder / "film").write_text(text)
    (folder / "films.csv").write_text(LIST)


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def occupied(tmp_path):
    fill(tmp_path / "data", "old")
    return tmp_path / "data"


def test_a_free_name_becomes_the_filled_folder(tmp_path):
    with new_folder(tmp_path / "data", replace=False) as folder:
        fill(folder)
        assert not (tmp_path / "data").exists()
    assert content(tmp_path) == {"data", "data/film", "data/films.csv"}


def test_an_empty_folder_counts_as_free(tmp_path):
    (tmp_path / "data").mkdir()
    with new_folder(tmp_path / "data", replace=False) as folder:
        fill(folder)
    assert content(tmp_path) == {"data", "data/film", "data/films.csv"}


def test_an_occupied_folder_is_refused_and_untouched(occupied):
    with pytest.raises(BadInput, match="is not empty"), new_folder(occupied, replace=False):
        pytest.fail("the block must not begin")
    assert (occupied / "film").read_text() == "old"


def test_a_replaced_folder_leaves_nothing_behind(occupied, tmp_path):
    with new_folder(occupied, replace=True) as folder:
        fill(folder)
        assert (occupied / "film").read_text() == "old"
    assert (occupied / "film").read_text() == "new"
    assert content(tmp_path) == {"data", "data/film", "data/films.csv"}


def test_a_folder_of_archives_is_replaced_and_one_with_an_archive_that_no_row_names_is_not(occupied):
    (occupied / "film").unlink()
    (occupied / "films").mkdir()
    (occupied / "films/00000.tar").write_text("old")
    rows = ("films/00000.tar/512/NORMAL/a.png", "films/00000.tar/1536/NORMAL/b.png")
    text = "path,label,patient\n" + "".join(f"{path},NORMAL,p1\n" for path in rows)
    (occupied / "films.csv").write_text(text)
    (occupied / "films/00001.tar").write_text("mine")
    with pytest.raises(BadInput, match=r"1 file\(s\) that its"), new_folder(occupied, replace=True):
        pytest.fail("the block must not begin")
    (occupied / "films/00001.tar").unlink()
    with new_folder(occupied, replace=True) as folder:
        fill(folder)
    assert (occupied / "film").read_text() == "new"


@pytest.mark.parametrize("text", [None, "", "a,b\n1,2\n", "path,label\nother,NORMAL\n", b"\xff\xfe"])
def test_a_folder_that_is_no_data_folder_is_never_replaced(occupied, text):
    (occupied / "films.csv").unlink()
    if text is not None:
        (occupied / "films.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = content(occupied)
    with pytest.raises(BadInput, match="nothing replaces it"), new_folder(occupied, replace=True):
        pytest.fail("the block must not begin")
    assert content(occupied) == before and (occupied / "film").read_text() == "old"


def test_a_file_a_link_and_what_holds_the_project_are_never_replaced(occupied, tmp_path):
    (tmp_path / "link").symlink_to(occupied)
    (tmp_path / "file").write_text("mine")
    kept = [occupied / "inner"]
    kept[0].mkdir()
    cases = {tmp_path / "link": "is a link", tmp_path / "file": "is no data folder", occupied: "lies in"}
    for target, problem in cases.items():
        with pytest.raises(BadInput, match=problem), new_folder(target, replace=True, kept=kept):
            pytest.fail("the block must not begin")
    assert (occupied / "film").read_text() == "old" and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [BadInput, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_folder(occupied, tmp_path, error):
    with pytest.raises(error), new_folder(occupied, replace=True) as folder:
        fill(folder)
        raise error("half-way")
    assert (occupied / "film").read_text() == "old"
    assert content(tmp_path) == {"data", "data/film", "data/films.csv"}


def test_a_move_that_fails_puts_the_old_folder_back(occupied, tmp_path, monkeypatch):
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".new"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"), new_folder(occupied, replace=True) as folder:
        fill(folder)
    assert (occupied / "film").read_text() == "old"
    assert content(tmp_path) == {"data", "data/film", "data/films.csv"}


def test_the_sample_remote_is_taken_off_and_the_rest_stays(tmp_path):
    out = {"md5": "0123.dir", "size": 5, "nfiles": 2, "hash": "md5", "path": "data"}
    (tmp_path / "data.dvc").write_text(yaml.safe_dump({"outs": [out | {"remote": "sample"}]}))
    own_remote(tmp_path)
    assert yaml.safe_load((tmp_path / "data.dvc").read_text()) == {"outs": [out]}


def test_a_pointer_without_a_remote_is_not_written_again(tmp_path):
    text = "outs:\n- {md5: 0123.dir, path: data}   # as the user wrote it\n"
    (tmp_path / "data.dvc").write_text(text)
    own_remote(tmp_path)
    assert (tmp_path / "data.dvc").read_text() == text


def test_a_project_without_a_pointer_is_left_alone(tmp_path):
    own_remote(tmp_path)
    assert content(tmp_path) == set()
