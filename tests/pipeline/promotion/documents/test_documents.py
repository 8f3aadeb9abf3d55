import re
from dataclasses import replace

import pandas as pd
import pytest

from openmed.errors import BadInput
from pipeline.promotion.documents import write_documents
from pipeline.promotion.documents.facts import Facts

FILES = ["model-card.md", "data-sheet.md", "claim-checklist.md", "change-plan-record.md"]


def test_the_documents_fill_themselves_from_the_record_and_count_what_is_open(registered, tmp_path):
    counts = write_documents("1", tmp_path / "out")
    assert list(counts) == FILES
    for name, (missing, items) in counts.items():
        text = (tmp_path / "out" / name).read_text()
        assert text.count("**to be written by people**") == missing > 0
        assert text.count("\n| ") - text.count("| item | answer |") == items
        assert f"{items - missing} of {items} items are filled in" in text
        assert "Decision support for research, not a diagnosis." in text and "DOE" not in text
    card, data, claim, record = ((tmp_path / "out" / name).read_text() for name in FILES)
    assert "resnet50 (test_resnet), input 32 px" in card and "| AUC | 1.000 (" in card
    assert "test: 24 films of 12 patients" in data and "0123abcd.dir" in data
    assert re.search(r"\| 42\. .* \| dvc.yaml, params.yaml and the change plan at git [0-9a-f]{40};", claim)
    assert "PASS: " in record and "registered: resnet50 of retraining run-1" in record


def _claim(folder):
    rows = re.findall(r"(?m)^\| (\d+)\. [^|]+ \| (.+) \|$", (folder / "claim-checklist.md").read_text())
    return {int(number): answer for number, answer in rows}


def test_the_claim_checklist_is_that_of_2024_and_what_nobody_recorded_stays_open(registered, tmp_path):
    write_documents("1", tmp_path)
    answers = _claim(tmp_path)
    assert list(answers) == list(range(1, 45))
    unanswered = {number for number, answer in answers.items() if answer == "**to be written by people**"}
    # Background, sources, acquisition, reference standard, planned size, registration, discussion, access.
    people = {2, 3, 4, 5, 7, 8, 13, 14, 15, 16, 17, 18, 21, 34, 40, 41, 43, 44}
    # This version has no external set, no checked heat maps, and films of which neither sex nor age is known.
    assert unanswered == people | {31, 33, 36}
    assert "24 test films" in answers[32] and "test: 24 films of 12 patients" in answers[35]
    assert answers[37].startswith("AUC on the test films 1.000 (")
    assert answers[38].startswith("sensitivity 1.000 (") and ", specificity 1.000 (" in answers[38]


def test_sex_and_age_of_the_films_are_told_where_they_are_known(registered):
    facts = Facts.of("1")
    assert facts.characteristics() is None
    known = pd.DataFrame({"sex": ["F", "M", "F", "", None], "age_band": ""})
    facts = replace(facts, evidence=replace(facts.evidence, films=known))
    assert facts.characteristics().endswith("; sex: F 2, M 1")
    facts = replace(
        facts, evidence=replace(facts.evidence, films=known.assign(sex="", age_band="65 and older"))
    )
    assert facts.characteristics().endswith("; age band: 65 and older 5")


def test_what_people_wrote_into_a_document_is_not_written_over(registered, tmp_path):
    write_documents("1", tmp_path)
    write_documents("1", tmp_path)
    card = tmp_path / "model-card.md"
    card.write_text(card.read_text().replace("**to be written by people**", "Written by people", 1))
    before = card.read_text()
    with pytest.raises(BadInput, match="may hold what people wrote"):
        write_documents("1", tmp_path)
    assert card.read_text() == before


def test_documents_of_an_unknown_version_are_refused(registered, tmp_path):
    with pytest.raises(BadInput, match="has no version 99"):
        write_documents("99", tmp_path)
    assert not list(tmp_path.iterdir())
