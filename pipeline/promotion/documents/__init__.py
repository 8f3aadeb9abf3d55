"""Documents that a version fills in by itself: model card, data sheet, CLAIM checklist, change-plan record.

Every answer is a fact of the evidence or of the record of decisions. What only people can answer is left
open, marked, and counted.
"""

from pathlib import Path

from openmed.errors import BadInput
from openmed.files import write_text
from pipeline.promotion.documents.claim import claim_checklist
from pipeline.promotion.documents.facts import Facts, Item
from pipeline.promotion.documents.sheets import data_sheet, model_card, plan_record

_DOCUMENTS = {
    "model-card.md": ("Model card", model_card),
    "data-sheet.md": ("Data sheet", data_sheet),
    "claim-checklist.md": ("CLAIM checklist", claim_checklist),
    "change-plan-record.md": ("Change-plan record", plan_record),
}
_OPEN = "**to be written by people**"


def write_documents(version: str, folder: Path) -> dict[str, tuple[int, int]]:
    """Writes the documents of a version as Markdown.

    Returns:
        File name -> how many of its items are open, and how many there are.

    Raises:
        BadInput: There is no such version, or a document is there that says something else.
        IntegrityError: Its evidence or the record was changed.
    """
    facts, counts, texts = Facts.of(version), {}, {}
    for name, (title, build) in _DOCUMENTS.items():
        items = build(facts)
        missing = sum(item.answer is None for item in items)
        path, text = Path(folder) / name, _markdown(title, version, items, missing)
        if path.exists() and path.read_bytes() != text.encode():
            raise BadInput(f"{path} is there already and may hold what people wrote: give another folder")
        counts[name], texts[path] = (missing, len(items)), text
    for path, text in texts.items():
        write_text(path, text)
    return counts


def _markdown(title: str, version: str, items: list[Item], missing: int) -> str:
    lines = [
        f"# {title}: openmed-cxr, version {version}",
        "",
        "Decision support for research, not a diagnosis.",
        "",
        f"{len(items) - missing} of {len(items)} items are filled in from the record; {missing} are open.",
    ]
    section = None
    for item in items:
        if item.section != section:
            section = item.section
            lines += ["", f"## {section}", "", "| item | answer |", "|---|---|"]
        answer = _OPEN if item.answer is None else " ".join(item.answer.split()).replace("|", "\\|")
        lines.append(f"| {item.topic} | {answer} |")
    return "\n".join(lines) + "\n"
