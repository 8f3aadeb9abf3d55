"""Keys of people who approve, made with OpenSSH."""

import shutil
import subprocess

import pytest

needs_openssh = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="signatures need OpenSSH: apt-get install openssh-client"
)


def make_key(folder, name):
    """Makes a key; returns its path and the line by which a change plan lists it."""
    folder.mkdir(exist_ok=True)
    key = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
    return key, f"{name}@hospital.example {key.with_suffix('.pub').read_text().strip()}"
