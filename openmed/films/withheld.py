"""What an import keeps of a file that is no usable film: the reason and a hash, nothing of its content."""

import re

from openmed.files import sha256_bytes

_START = b"Nothing is kept of this file, because it "
_FORM = re.compile(re.escape(_START) + rb"([ -~]{1,300})\n\nSHA-256 of what it was: [0-9a-f]{64}\n")


def withheld(content: bytes, reason: str) -> bytes:
    """Returns what stands in for a file, which decoders refuse with its reason, cut to plain characters."""
    plain = re.sub(r"[^ -~]", "?", reason)[:300]
    return _START + f"{plain}\n\nSHA-256 of what it was: {sha256_bytes(content)}\n".encode()


def withheld_reason(content: bytes) -> str:
    """Returns why a file was not kept, empty if it is none that stands in for another."""
    match = _FORM.fullmatch(content)
    return match[1].decode() if match else ""
