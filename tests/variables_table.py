"""The table of environment variables of docs/variables.md; `python -m tests.variables_table` writes it."""

from pathlib import Path

from pydantic import SecretStr

from pipeline.settings.variables import Variables

PAGE = Path(__file__).parents[1] / "docs" / "variables.md"


def table() -> str:
    """Returns the table in Markdown, in the order of the class."""
    lines = ["| Variable | Default | What it says |", "|---|---|---|"]
    for field in Variables.model_fields.values():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        lines.append(
            f"| `{field.validation_alias}` | {f'`{default}`' if default else ''} | "
            f"{' '.join(str(field.description).split())} |"
        )
    return "\n".join(lines) + "\n"


def page_with(new: str) -> str:
    """Returns the page with a table in the place of its own."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("| Variable |")
    after = rest.partition("\n\n")[2]
    return before + new + "\n" + after


if __name__ == "__main__":
    PAGE.write_text(page_with(table()), encoding="utf-8")
