"""The weights vault: a folder of weights to start from, with a record of where each came from.

It can be copied, versioned and read without any connection. Whoever fills it, the record is written last,
so after a kill it names no file that is not there in full.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from openmed.files import atomic_path, read_json, sha256_file, write_json

VAULT_FILE = "vault.json"
CHAMPION_WEIGHTS = "champion"
UNKNOWN_LICENCE = "unknown"
_TEXTS = ("kind", "timm_name", "file", "source", "licence", "sha256", "added_at")


@dataclass(frozen=True)
class VaultEntry:
    """One weights file of a vault.

    Attributes:
        kind: imagenet or champion.
        timm_name: The network.
        file: Name of the safetensors file in the vault's folder.
        source: Address of the hub's repository, or the version of the registry.
        revision: Commit of the hub's repository; None for a champion.
        licence: As its source states it; "unknown" where it states none.
        sha256: Hash of the file.
        bytes: Size of the file.
        added_at: When it came into the vault, ISO 8601, UTC.
        spec: A champion's description, as `ModelSpec.to_json` gives it; None for ImageNet weights.
    """

    kind: str
    timm_name: str
    file: str
    source: str
    revision: str | None
    licence: str
    sha256: str
    bytes: int
    added_at: str
    spec: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Name under which the vault holds it: there is one champion, and one file for each network."""
        return CHAMPION_WEIGHTS if self.kind == CHAMPION_WEIGHTS else self.timm_name

    def state(self, vault: Path) -> str:
        """Returns "intact", "missing" or "damaged", by hashing the file."""
        path = Path(vault) / self.file
        if not path.is_file():
            return "missing"
        return "intact" if sha256_file(path) == self.sha256 else "damaged"

    def path_in(self, vault: Path) -> Path:
        """Returns the file's path after checking its content; IntegrityError where it is gone or damaged."""
        if (state := self.state(vault)) != "intact":
            raise IntegrityError(
                f"{Path(vault) / self.file} is {state}: get it back with `dvc checkout --force` or "
                f"`dvc pull --force`, or with `{self.remedy}`"
            )
        return Path(vault) / self.file

    @property
    def remedy(self) -> str:
        """The command that puts it into the vault."""
        return "openmed weights pull" + (" --champion" if self.kind == CHAMPION_WEIGHTS else "")


def read_vault(vault: Path) -> dict[str, VaultEntry]:
    """Returns what a vault holds by `VaultEntry.key`, nothing where there is none; BadInput if unreadable."""
    path = Path(vault) / VAULT_FILE
    if not path.is_file():
        return {}
    try:
        entries = [VaultEntry(**content) for content in read_json(path)["weights"]]
    except (TypeError, KeyError):
        entries = None
    if entries is None or not all(map(_is_typed, entries)):
        raise BadInput(f"{path} is no record of a weights vault: restore it from its last version")
    for entry in entries:
        # A vault may come from another house: nothing in it may point elsewhere.
        if not entry.file or Path(entry.file).name != entry.file:
            raise BadInput(f"{path} names a file outside its folder: restore it from its last version")
    return {entry.key: entry for entry in entries}


def _is_typed(entry: VaultEntry) -> bool:
    texts = [getattr(entry, name) for name in _TEXTS]
    return (
        all(isinstance(text, str) and text.isprintable() for text in texts)
        and isinstance(entry.revision, str | None)
        and isinstance(entry.bytes, int)
        and isinstance(entry.spec, dict | None)
    )


def put_in_vault(vault: Path, source: Path, entry: VaultEntry) -> None:
    """Copies a file into a vault, checks the copy's hash and records it; replaces what had the same key."""
    vault, held = Path(vault), read_vault(vault)
    with atomic_path(vault / entry.file) as temporary:
        shutil.copyfile(source, temporary)
        if sha256_file(temporary) != entry.sha256:
            raise IntegrityError(f"{entry.source} changed while it was copied into {vault}: do it again")
    before = held.get(entry.key)
    held[entry.key] = entry
    write_json(vault / VAULT_FILE, {"weights": [asdict(held[key]) for key in sorted(held)]})
    if before is not None and before.file != entry.file:
        (vault / before.file).unlink(missing_ok=True)
