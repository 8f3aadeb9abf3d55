"""YAML is read whole and unambiguous, or refused in one sentence, whoever wrote it."""

import subprocess
import sys

import pytest
import yaml

from openmed.errors import BadInput
from pipeline.settings.params import load_params
from pipeline.settings.plan import load_plan
from pipeline.settings.yaml_file import parse_yaml, read_yaml
from pipeline.tools.dvc_graph import load_graph
from pipeline.tools.dvc_lock import read_pointer
from pipeline.versioning.external_sets import external_sets
from pipeline.versioning.workspace import set_values
from tests.conftest import ROOT

# Ten anchors, each a list of ten aliases of the one before: 10^9 values in 400 bytes.
BILLION = "a: &a [1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "name",
    ["params.yaml", "params.production.yaml", "change_plan.yaml", "change_plan.production.yaml", "dvc.yaml"],
)
def test_shipped_files_read_as_by_the_safe_loader(name):
    assert read_yaml(ROOT / name) == yaml.safe_load((ROOT / name).read_text())


def test_a_merged_mapping_may_be_overridden():
    text = "base: &base {x: 1, y: 2}\nown: {<<: *base, x: 3}\n"
    assert parse_yaml(text, "f")["own"] == yaml.safe_load(text)["own"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "c: {a: 1, a: 1}", "- {1: x, 1: y}", '{a: 1, "a": 2}']
)
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(BadInput, match=r"^f cannot be read as YAML: the key '[a1]' stands there twice"):
        parse_yaml(text, "f")


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"a: [",
            b"\xff\xfe",
            b"a: \x00",
            b"a: !!bool x",
            b"a: 2026-13-45",
            b"{? [1]: 2}",
            b"!!timestamp x",
        ),
        *(b"a: !!python/object:os.system x", b"a: &a [*a]", b"a: 1\n---\nb: 2", b"a: " + b"9" * 5000),
        *(b"[" * 300_000, b"- " * 300_000 + b"1", BILLION.encode(), b"a" * (17 << 20)),
    ],
    ids=lambda content: content[:12].decode(errors="replace").replace("\0", "NUL"),
)
def test_damaged_and_malicious_files_are_one_sentence(tmp_path, content):
    path = tmp_path / "damaged.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read_yaml(path)
    assert str(refused.value).startswith(str(path))
    assert len(str(refused.value).splitlines()) == 1


def test_100000_levels_do_not_end_the_process():
    code = "from pipeline.settings.yaml_file import parse_yaml; parse_yaml('- ' * 100000 + '1', 'f')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nested too deeply" in done.stderr


@pytest.mark.parametrize("name", ["is/a/folder", "absent.yaml"])
def test_a_file_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "is/a/folder").mkdir(parents=True)
    with pytest.raises(BadInput, match=name):
        read_yaml(tmp_path / name)


def test_a_second_list_of_reviewers_does_not_take_one_away(tmp_path):
    text = (ROOT / "change_plan.yaml").read_text()
    path = tmp_path / "change_plan.yaml"
    path.write_text(text.replace("impact:", "  reviewers:\n    technical: one\nimpact:"))
    assert len(yaml.safe_load(path.read_text())["protocol"]["reviewers"]) == 1
    with pytest.raises(BadInput, match="'reviewers' stands there twice"):
        load_plan(path)


def test_no_road_takes_the_later_of_two_keys(tmp_path):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text() + "\nstages: {}\nstages: {}\n")
    (tmp_path / "data.dvc").write_text("outs:\n- md5: a.dir\n  path: data\n  md5: b.dir\n")
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "away").mkdir()
    (tmp_path / "external" / "away.dvc").write_text("outs: [{md5: a.dir}]\nouts: [{md5: b.dir}]\n")
    roads = {
        load_params: tmp_path / "params.yaml",
        load_graph: tmp_path / "dvc.yaml",
        read_pointer: tmp_path / "data.dvc",
        external_sets: tmp_path,
        lambda path: set_values(path, {"run.seed": 1}): tmp_path / "params.yaml",
    }
    for road, path in roads.items():
        with pytest.raises(BadInput, match="stands there twice"):
            road(path)


@pytest.mark.parametrize(
    "text",
    [
        "outs: 5",
        "outs: []",
        "outs: [5]",
        "- 1",
        "",
        "outs: [{path: data}]",
        "outs: [{md5: 5}]",
        "outs: [{md5: a}]\nmeta: 5",
    ],
)
def test_a_pointer_that_dvc_did_not_write_is_refused(tmp_path, text):
    (tmp_path / "data.dvc").write_text(text)
    with pytest.raises(BadInput, match=r"data\.dvc is not what DVC writes"):
        read_pointer(tmp_path / "data.dvc")
