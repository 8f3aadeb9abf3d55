"""The secret of a site, from which the pseudonyms of its patients and the seals of its tasks are made."""

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from openmed.errors import BadInput, IntegrityError
from openmed.files import sync
from openmed.privacy.cleaning import Pseudonyms
from pipeline.settings.variables import variables


def pseudonyms(home: Path) -> Pseudonyms:
    """Returns the pseudonyms of this site.

    The secret is OPENMED_SITE_SECRET, or the file `site_secret` in the state folder, which is made at
    the first call and readable by its owner alone. Keep it: with another secret a known patient gets
    another pseudonym, and his new films may end up in another split than his old ones.

    Raises:
        BadInput: The secret is shorter than 16 bytes.
    """
    return Pseudonyms(_secret(home))


def seal(content: str, home: Path) -> dict[str, str]:
    """Returns a seal of a text, which nobody can make without the secret of this site.

    Whoever seals puts into the text what it counts for, so that it counts for nothing else.

    Raises:
        BadInput: The secret is shorter than 16 bytes.
    """
    secret = _secret(home)
    Pseudonyms(secret)  # refuses a short one
    key = _stretched(secret)
    sealed = hmac.new(key, _bytes(content), hashlib.sha256).hexdigest()
    # The mark tells keys apart, and nothing else of them.
    return {"key": hashlib.sha256(key).hexdigest()[:12], "hmac": sealed}


def is_sealed(content: str, shown: Any, home: Path, what: str) -> bool:
    """Tells whether something is this site's seal of a text.

    Raises:
        BadInput: The secret is shorter than 16 bytes.
        IntegrityError: What bears the seal, which `what` names, was sealed with another secret.
    """
    right, shown = seal(content, home), shown if isinstance(shown, dict) else {}
    if shown.get("key") and shown["key"] != right["key"]:
        raise IntegrityError(
            f"{what} was sealed with another site secret than the one of this host: "
            "give every host the same OPENMED_SITE_SECRET, by a variable or by a file"
        )
    return hmac.compare_digest(_bytes(str(shown.get("hmac"))), right["hmac"].encode())


def _bytes(text: str) -> bytes:
    # JSON that somebody else wrote may hold half of a character.
    return text.encode(errors="surrogatepass")


@lru_cache(maxsize=4)
def _stretched(secret: bytes) -> bytes:
    # Seals are shown to many: a secret that a person made up must not be found by trying.
    return hashlib.scrypt(secret, salt=b"openmed seal 1", n=2**14, r=8, p=1, dklen=32)


def _secret(home: Path) -> bytes:
    if named := variables().site_secret:
        return named.get_secret_value().encode()
    path = home / "site_secret"
    if not path.exists():
        _make(path)
    secret = path.read_text(encoding="ascii").strip()
    if not secret:
        raise BadInput(f"{path} is empty: restore it, or name the secret in OPENMED_SITE_SECRET")
    return secret.encode()


def _make(path: Path) -> None:
    """Makes the secret; of two that do so at once, one file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        sync(temporary)
        with suppress(FileExistsError):
            os.link(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
