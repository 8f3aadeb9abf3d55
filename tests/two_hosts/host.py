"""A machine of the scenery: namespaces of its own for mounts, processes and its name, a user and a home.

It sees the system and the installed environment, read-only to its user, and no folder of another machine;
loopback is all that machines share. Needs the superuser.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.tools.processes import kill

_KILLED_WITHIN_S = 10
# The first process of a machine: it builds the machine's root, and holds it until its input closes, so that
# the machine ends with whoever made it, whatever ended that.
_INIT = r"""
set -e
umask 022
root=$1 name=$2 uid=$3 disk=$4; shift 4
mount -t tmpfs -o mode=755 tmpfs "$root"
for each in usr bin sbin lib lib64 etc; do
  if [ -L "/$each" ]; then cp -d "/$each" "$root/"
  elif [ -d "/$each" ]; then mkdir "$root/$each"; mount --rbind "/$each" "$root/$each"; fi
done
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/var/tmp" "$root/home/$name"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount --bind "$disk" "$root/home/$name"
mkdir -p "$root/home/$name/tmp"
for each in tmp var/tmp; do mount --bind "$root/home/$name/tmp" "$root/$each"; done
for each in "$@"; do mkdir -p "$root$each"; mount --bind "$each" "$root$each"; done
chown "$uid:$uid" "$root/home/$name" "$root/tmp"
chmod 700 "$root/home/$name"
accounts=$(mktemp -d -p "$root/run")
{ echo root:x:0:0::/:/bin/sh; echo "$name:x:$uid:$uid::/home/$name:/bin/sh"; } >"$accounts/passwd"
{ echo root:x:0:; echo "$name:x:$uid:"; } >"$accounts/group"
mount --bind "$accounts/passwd" "$root/etc/passwd"
mount --bind "$accounts/group" "$root/etc/group"
hostname "$name"
echo ready
exec chroot "$root" /bin/bash -c 'while read -r; do :; done'
"""


class Host:
    """One machine; its disk outlives a power cut.

    Args:
        name: Of the machine and of its user.
        uid: Of its user, who exists on no other machine.
        folder: An empty folder below which the disk lies.
        disk_mb: Size of the disk; None takes what the file system has.
    """

    def __init__(self, name: str, uid: int, folder: Path, disk_mb: int | None = None) -> None:
        self.name, self.uid = name, uid
        self.home = Path("/home") / name
        self._root, self.disk = folder / f"{name}-root", folder / name
        self._init: subprocess.Popen[str] | None = None
        self._mounted = disk_mb is not None
        self._log = folder / f"{name}.log"
        for each in (self._root, self.disk):
            each.mkdir()
        if disk_mb:
            size = f"size={disk_mb}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.disk)], check=True)

    def on(self) -> None:
        """Switches the machine on."""
        seen = dict.fromkeys(str(Path(each).resolve()) for each in (sys.prefix, sys.base_prefix))
        outside = [each for each in seen if not each.startswith("/usr")]
        machine = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        script = ["bash", "-c", _INIT, "init", str(self._root), self.name, str(self.uid), str(self.disk)]
        self._init = subprocess.Popen(
            [*machine, *script, *outside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            text=True,
            start_new_session=True,
        )
        if self._init.stdout is None or self._init.stdout.readline() != "ready\n":
            raise RuntimeError(f"machine {self.name} did not start: {self.log()[-500:]}")

    def cut(self) -> None:
        """Cuts the power: every process of the machine is gone at once, what is on its disk stays."""
        if self._init is not None:
            first = psutil.Process(self._init.pid).children()
            with suppress(ProcessLookupError):
                os.killpg(self._init.pid, signal.SIGKILL)
            self._init.wait()
            # The first process of a machine is gone when all others are.
            psutil.wait_procs(first, _KILLED_WITHIN_S)
            self._init = None

    def scrap(self) -> None:
        """Switches it off for good; its disk, where it is not a part of the file system, is lost."""
        self.cut()
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)

    def spawn(self, name: str, *command: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts a command as the user of the machine; its output goes to `log(name)`."""
        with self._file(name).open("ab") as log:
            return subprocess.Popen(
                [*self._enter(), *command],
                env=self._environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *command: str, variables: Mapping[str, str] | None = None, within_s: float = 600) -> str:
        """Runs a command as the user of the machine and returns what it printed.

        Raises:
            RuntimeError: It failed.
        """
        done = subprocess.run(
            [*self._enter(), *command],
            env=self._environment(variables or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise RuntimeError(f"{' '.join(command[:6])} on {self.name} ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def log(self, name: str | None = None) -> str:
        """Returns what a command printed, or the machine itself."""
        return (self._file(name) if name else self._log).read_text(errors="replace")

    def _file(self, name: str) -> Path:
        return self._log.with_name(f"{self.name}-{name}.log")

    def _enter(self) -> list[str]:
        if self._init is None:
            raise RuntimeError(f"machine {self.name} is off")
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        first = psutil.Process(self._init.pid).children()[0].pid
        inside = ["nsenter", f"--target={first}", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]
        return [*inside, *user, "env", f"--chdir={self.home}"]

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
        return {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "LANG": "C.UTF-8",
            "PATH": path,
            **variables,
        }


def ended(process: subprocess.Popen[bytes]) -> None:
    """Kills a command that `spawn` has started, with all below it."""
    with suppress(psutil.Error):
        kill({*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)})
    process.wait()


def refusal() -> str | None:
    """Returns why this system makes no such machines, None where it does."""
    tools = [each for each in ("unshare", "nsenter", "setpriv", "chroot", "mount") if not shutil.which(each)]
    if tools:
        return f"{tools[0]} is not installed (Debian: util-linux)"
    if os.geteuid() != 0:
        return "it needs the superuser, who alone makes users and mounts"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"this system refuses namespaces ({tried.stderr.strip()[:200]})" if tried.returncode else None
