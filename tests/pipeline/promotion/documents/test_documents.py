import pytest

from openmed.errors import BadInput
from pipeline.promotion.documents import write_documents

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
    assert counts["claim-checklist.md"][1] == 42 and "| 41. where code" in claim
    assert "PASS: " in record and "registered: resnet50 of retraining run-1" in record


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
