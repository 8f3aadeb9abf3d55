"""The looks at one version: how much of the one error rate of its watch each of them may use.

A look is known by the content of the films and labels it judged, so that watching again, or the same films
under other names, is no further look.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openmed.files import read_json, sha256_bytes, write_json
from openmed.gates.spending import look_error

LABELS, LOOKS = "labels", "looks of films"
# Films that only look otherwise are seldom near a limit; a loss is to be found with few labels.
_PART = {LABELS: 0.95, LOOKS: 0.05}


class Looks:
    """The looks at one version so far, kept in a file; None keeps them in memory.

    Files of other hosts are read too: all looks have one error rate.
    """

    def __init__(self, path: Path | None = None, *others: Path) -> None:
        self._path = path
        files = [each for each in (path, *others) if each and each.exists()]
        looks = {
            (look["at"], look["what"], look["sha256"]): look
            for file in files
            # What the latest look judged is kept, of earlier ones maybe only by another host.
            for look in sorted(read_json(file)["looks"], key=lambda look: bool(look["judged"]))
        }
        self._looks: list[dict[str, Any]] = sorted(looks.values(), key=lambda look: look["at"])

    def error(self, purse: str, what: str, judged: Iterable[str], planned: int, rate: float) -> float:
        """Returns the error that a look may make, of the rate of all looks together, and remembers it.

        What one purse pays for, `LABELS` or `LOOKS`, shares one part of the rate. A look is compared with
        earlier ones at the same `what`, by the names, from their content, of what is judged; the plan judges
        a version on `planned` films.
        """
        names = sorted({name[:16] for name in judged})
        digest = sha256_bytes("".join(names).encode())
        same = [look for look in self._looks if look["what"] == what]
        if earlier := next((look for look in same if look["sha256"] == digest), None):
            return earlier["error"]
        new = len(set(names) - set(same[-1]["judged"] if same else ()))
        before = sum(look["new"] for look in self._looks if look["purse"] == purse)
        error = look_error(before, new, planned, rate * _PART[purse])
        for look in same:
            look["judged"] = []
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        look = {"what": what, "purse": purse, "at": at, "sha256": digest, "new": max(1, new), "error": error}
        self._looks.append(look | {"judged": names})
        return error

    def save(self) -> None:
        """Writes them down; a look counts from then on, whatever it finds."""
        if self._path is not None:
            write_json(self._path, {"looks": self._looks})
