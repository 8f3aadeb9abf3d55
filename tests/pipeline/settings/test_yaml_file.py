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


def test_a_mapping_may_be_merged():
    text = "base: &base {x: 1, y: 2}\nown: {<<: *base, z: 3}\n"
    assert parse_yaml(text, "f")["own"] == yaml.safe_load(text)["own"] == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize(
    "text",
    [
        "base: &base {x: 1, y: 2}\nown: {<<: *base, x: 3}\n",
        "base: &base {x: 1}\nown: {x: 3, <<: *base}\n",
        "own: {<<: {x: 1}, <<: {x: 2}}\n",
        "own: {<<: [{x: 1}, {x: 2}]}\n",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 1}\nc: {<<: [*b, *a]}\n",
    ],
)
def test_a_merge_overrides_no_key(text):
    assert len(yaml.safe_load(text)) > 0
    with pytest.raises(BadInput, match="the key 'x' stands there twice"):
        parse_yaml(text, "f")


def test_an_anchor_is_not_given_twice():
    with pytest.raises(BadInput, match="found duplicate anchor"):
        parse_yaml("a: &x {auc: 0.8}\nb: &x {auc: 0.1}\nfloors: *x\n", "f")


def test_merges_that_double_thirty_times_end_at_once():
    doubled = "".join(f"m{n + 1}: &m{n + 1} {{<<: [*m{n}, *m{n}]}}\n" for n in range(30))
    for base in ("{}", "{x: 1}"):
        text = f"m0: &m0 {base}\n{doubled}"
        if base == "{}":
            assert parse_yaml(text, "f")["m30"] == {}
        else:
            with pytest.raises(BadInput, match="twice"):
                parse_yaml(text, "f")


@pytest.mark.parametrize("other", ["ﬂoors", "ｆloors", "flo\u200bors", "floors\u2060", "fl\u00adoors"])
def test_a_key_in_another_unicode_form_is_the_same_key(other):
    # As an escape no character is unseen in the file itself.
    text = f'floors: {{auc: 0.8}}\n"{other.encode("unicode_escape").decode()}": {{auc: 0.1}}\n'
    assert set(yaml.safe_load(text)) == {"floors", other}
    with pytest.raises(BadInput, match="stands there twice"):
        parse_yaml(text, "f")


@pytest.mark.parametrize("hidden", ["\u2028", "\u2029", "\x85", "\r"])
def test_no_setting_hides_in_a_comment(tmp_path, hidden):
    path = tmp_path / "plan.yaml"
    path.write_bytes(f"auc: 0.8\n# The floors.{hidden}looks: 1000\n".encode())
    assert yaml.safe_load(path.read_bytes()) == {"auc": 0.8, "looks": 1000}
    with pytest.raises(BadInput, match=rf"plan.yaml .*line 2 .*U\+{ord(hidden):04X}"):
        read_yaml(path)


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\u200b", "\ufeff", "\u00ad", "\u3164"])
def test_what_cannot_be_seen_is_refused_wherever_it_stands(mark):
    with pytest.raises(BadInput, match=f"U\\+{ord(mark):04X}"):
        parse_yaml(f"a: 1 # {mark}x\n", "f")
    assert parse_yaml("\ufeffa: 1\r\nb: ä é 肺\t\n", "f") == {"a": 1, "b": "ä é 肺"}


@pytest.mark.parametrize(
    "number", ["010", "-017", "1_000", "0b11", "0x1F", "1:30", "20:30.5", "0_8.5", "+0_7", "1_0.5", "00.5"]
)
def test_a_number_that_is_not_read_alike_everywhere_is_refused(number):
    assert isinstance(yaml.safe_load(number), int | float)
    with pytest.raises(BadInput, match="write a decimal number"):
        parse_yaml(f"looks: {number}\n", "f")
    assert parse_yaml(f"looks: '{number}'\n", "f") == {"looks": number}


@pytest.mark.parametrize("number", ["0", "-0", "12", "+3", "0.80", "-.5", "3.", "1.0e-3", "1.5E+6", ".inf"])
def test_decimal_numbers_are_read_as_by_the_safe_loader(number):
    assert parse_yaml(f"a: {number}", "f") == yaml.safe_load(f"a: {number}")


def test_truth_values_are_true_and_false_alone():
    assert parse_yaml("[true, False, TRUE]", "f") == [True, False, True]
    # A class may be called NO; DVC reads the same.
    assert parse_yaml("[yes, NO, on, Off, y, n]", "f") == ["yes", "NO", "on", "Off", "y", "n"]


@pytest.mark.parametrize(
    "text", ["a: !!float '0.8'", "!!omap [a: 1, a: 2]", "a: !x 1", "%TAG ! tag:x,1:\n--- !y {}"]
)
def test_a_tag_is_refused(text):
    with pytest.raises(BadInput, match=r"f cannot be read as YAML: a tag \(.*\) stands there"):
        parse_yaml(text, "f")


@pytest.mark.parametrize("reader", [load_plan, load_params])
def test_a_second_document_of_plan_or_params_is_refused(tmp_path, reader):
    path = tmp_path / "settings.yaml"
    for second in ("---\nlooks: 1000\n", "...\nlooks: 1000\n", "---\n"):
        name = "change_plan.yaml" if reader is load_plan else "params.yaml"
        path.write_text((ROOT / name).read_text() + second)
        with pytest.raises(BadInput, match="cannot be read as YAML"):
            reader(path)


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
