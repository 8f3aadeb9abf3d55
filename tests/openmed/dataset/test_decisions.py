import hashlib

import pandas as pd
import pytest

from openmed.dataset.decisions import apply_decisions, read_decisions
from openmed.errors import BadInput

CLASSES = ("NORMAL", "PNEUMONIA")
HEADER = "film,decision,label,reason,by\n"
SHA = [hashlib.sha256(bytes([n])).hexdigest() for n in range(5)]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "decisions.csv"


@pytest.fixture
def manifest():
    """Five films, the last a copy of the first under another label, one quarantined, one unreadable."""
    return pd.DataFrame(
        {
            "id": [*"abcdef"],
            "sha256": [*SHA[:4], SHA[0], ""],
            "label": [0, 1, 0, 1, 1, 0],
            "status": ["accepted", "accepted", "accepted", "quarantined", "accepted", "quarantined"],
            "reason": ["", "", "", "the film is blank", "", "the film is empty"],
        }
    )


def decide(file, manifest, *lines):
    file.write_text(HEADER + "".join(line + "\n" for line in lines))
    return apply_decisions(manifest, read_decisions(file, CLASSES), CLASSES, file)


def test_the_shipped_file_holds_no_decision():
    from tests.conftest import ROOT

    assert (ROOT / "decisions.csv").read_text() == HEADER
    assert read_decisions(ROOT / "decisions.csv", CLASSES).empty


def test_without_decisions_nothing_changes(file, manifest):
    decided, counts = decide(file, manifest)
    pd.testing.assert_frame_equal(decided[manifest.columns], manifest)
    assert counts == {"excluded": 0, "relabelled": 0, "kept": 0, "unknown": 0}
    assert not decided["relabelled"].any()


def test_excluded_relabelled_and_kept_films_are_marked_and_counted(file, manifest):
    lines = (f"{SHA[1]},exclude,,rotated,A", f"{SHA[2]},relabel,PNEUMONIA,,B", f"{SHA[0]},keep,,,")
    decided, counts = decide(file, manifest, *lines)
    assert decided["status"].tolist()[:3] == ["accepted", "excluded", "accepted"]
    assert decided["reason"][1] == "excluded by a reviewer"
    assert decided["label"].tolist() == [0, 1, 1, 1, 1, 0]
    assert decided["original_label"].tolist() == manifest["label"].tolist()
    assert decided["relabelled"].tolist() == [False, False, True, False, False, False]
    assert decided["decision"].tolist() == ["keep", "exclude", "relabel", "", "keep", ""]
    assert counts == {"excluded": 1, "relabelled": 1, "kept": 2, "unknown": 0}


def test_exact_copies_share_a_decision(file, manifest):
    decided, counts = decide(file, manifest, f"{SHA[0]},relabel,PNEUMONIA,,")
    assert decided["label"].tolist()[::4] == [1, 1]
    assert counts["relabelled"] == 1


def test_a_quarantined_film_stays_quarantined(file, manifest):
    decided, counts = decide(file, manifest, f"{SHA[3]},exclude,,,")
    assert decided["status"][3] == "quarantined"
    assert decided["reason"][3] == "the film is blank"
    assert counts["excluded"] == 0


def test_a_short_film_id_will_do_and_case_does_not_matter(file, manifest):
    decided, _ = decide(file, manifest, f"{SHA[1][:16].upper()},exclude,,,")
    assert decided["status"][1] == "excluded"


def test_an_id_that_fits_two_films_is_refused(file, manifest):
    manifest.loc[1, "sha256"] = SHA[0][:12] + SHA[1][12:]
    with pytest.raises(BadInput, match=r"line 2: .* fits more than one film"):
        decide(file, manifest, f"{SHA[0][:10]},exclude,,,")


def test_decisions_on_films_that_are_gone_are_counted(file, manifest):
    decided, counts = decide(file, manifest, f"{SHA[4]},exclude,,,", f"{'0' * 64},keep,,,")
    assert counts == {"excluded": 0, "relabelled": 0, "kept": 0, "unknown": 2}
    assert set(decided["decision"]) == {""}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{SHA[0]},keep,,,", f"{SHA[1]},remove,,SECRET,"], "line 3: the decision must be one of keep"),
        ([f"{SHA[0]},relabel,SECRET,,"], "line 2: to relabel, give one of the classes NORMAL, PNEUMONIA"),
        ([f"{SHA[0]},relabel,,SECRET,"], "line 2: to relabel"),
        (["SECRET,keep,,,"], "line 2: film must be the sha256"),
        ([f"{SHA[0]},keep"], "line 2: give 5 values"),
        ([f"{SHA[0]},keep,,SECRET,me,more"], "line 2: give 5 values"),
        ([f"{SHA[0]},keep,,SECRET,", f"{SHA[0]},exclude,,,"], "line 3: the film has another decision"),
        (
            [f"{SHA[0]},relabel,NORMAL,,", f"{SHA[0]},relabel,PNEUMONIA,,"],
            "line 3: the film has another decision",
        ),
        ([f"{SHA[0]},keep,,,", f"{SHA[0][:9]},exclude,,,"], "line 3: the film has another decision"),
        ([f'{SHA[0]},keep,,"two\nlines SECRET",', f"{SHA[0]},keep,,,", "x,keep,,,"], "line 5: film must"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_line_and_never_repeated(file, manifest, lines, message):
    with pytest.raises(BadInput, match=message) as caught:
        decide(file, manifest, *lines)
    assert "SECRET" not in str(caught.value)


def test_the_same_decision_twice_is_one(file, manifest):
    _, counts = decide(file, manifest, f"{SHA[1]},exclude,,a,x", f"{SHA[1]},exclude,NORMAL,b,y")
    assert counts["excluded"] == 1


def test_a_spreadsheet_s_byte_order_mark_does_no_harm(file):
    file.write_text("\ufeff" + HEADER + f"{SHA[0]},keep,,,\n", encoding="utf-8")
    assert len(read_decisions(file, CLASSES)) == 1


@pytest.mark.parametrize("content", [b"", b"film,decision\n", b"\xff\xfe\x00", HEADER.encode() + b'x,"\n'])
def test_another_table_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"decisions\.csv"):
        read_decisions(file, CLASSES)


def test_a_missing_file_is_refused_because_decisions_would_be_undone(file):
    with pytest.raises(BadInput, match="does not exist"):
        read_decisions(file, CLASSES)
