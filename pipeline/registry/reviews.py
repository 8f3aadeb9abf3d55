"""The pages that reviewers decide on, stored beside the evidence of a version."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from openmed.files import hashes_below, sha256_bytes, write_bytes, write_text
from pipeline.ledger import show
from pipeline.tracking.store import connect
from pipeline.tracking.versions import address_of, file_address, find

_Key = TypeVar("_Key")
REVIEWS = "reviews"


def keep_review(
    version: str, page: str, pictures: Mapping[_Key, bytes], content: Mapping[str, Any]
) -> tuple[str, dict[_Key, str]]:
    """Stores what reviewers decide on, and writes down that it was shown.

    Args:
        version: The version it is about.
        page: HTML.
        pictures: Key -> JPEG, for a page that shows them from where they are stored.
        content: What it says, in short.

    Returns:
        Where a person can open the page, and key -> where a browser finds each picture; no pictures where
        no server shows them.
    """
    names = {key: f"{sha256_bytes(data)[:12]}.jpeg" for key, data in pictures.items()}
    page_name = f"{sha256_bytes(page.encode())[:12]}.html"
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / page_name, page)
        for key, data in pictures.items():
            write_bytes(Path(folder) / names[key], data)
        hashes = {f"{REVIEWS}/{name}": digest for name, digest in hashes_below(Path(folder)).items()}
        with connect(adds_files=True) as client:
            client.log_artifacts(find(client, version).run_id, folder, REVIEWS)
    path = f"{REVIEWS}/{page_name}"
    show(version, {**content, "path": path, "sha256": hashes.pop(path), "pictures": hashes})
    addresses = {key: file_address(version, f"{REVIEWS}/{name}") for key, name in names.items()}
    return address_of(version, path), {key: address for key, address in addresses.items() if address}
