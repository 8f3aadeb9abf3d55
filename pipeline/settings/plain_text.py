"""Text from people and records, kept to one line: no control character forges a line of a story."""

from openmed.errors import BadInput

_LONGEST = 2000


def plain(text: str) -> str:
    """Returns a text for a terminal: what is not printable, line breaks too, is shown as its escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def one_line(text: str, what: str) -> str:
    """Returns what a person wrote as it is recorded: runs of white space become one space.

    Raises:
        BadInput: It (`what`) holds characters that show nothing, as control characters, or is too long.
    """
    line = " ".join(text.split())
    if not line.isprintable():
        raise BadInput(f"{what} holds characters that cannot be shown: write it in plain text")
    if len(line) > _LONGEST:
        raise BadInput(f"{what} is longer than {_LONGEST} characters: say it shorter")
    return line
