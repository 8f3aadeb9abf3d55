"""The secret of a site, from which the pseudonyms of its patients are made."""

import secrets
from pathlib import Path

from openmed.errors import BadInput
from openmed.files import atomic_path
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
    if named := variables().site_secret:
        return Pseudonyms(named.get_secret_value().encode())
    path = home / "site_secret"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(32))
    secret = path.read_text(encoding="ascii").strip()
    if not secret:
        raise BadInput(f"{path} is empty: restore it, or name the secret in OPENMED_SITE_SECRET")
    return Pseudonyms(secret.encode())
