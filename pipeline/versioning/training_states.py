"""The states of trainings that run, on the storage that hosts share: another host goes on where one stopped.

They lie in `states/RUN/STAGE`, under the seal of the site. What else lies below `states/RUN` goes with them.
"""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openmed.errors import OpenMedError
from openmed.files import link_or_copy, sha256_file
from openmed.training.position import BEST_PREFIX, STATE_FILE, read_position
from pipeline.settings.project import checkpoint_folder
from pipeline.versioning.objects import Bundle, Store, store
from pipeline.versioning.workspace import default_remote

_ROOT = "states"
_LOOKS_EVERY_S, _AGAIN_AFTER_S = 1.0, 30.0
# A training that ended needs no state; one that failed has its last one sent, if that goes quickly.
_LAST_SENDING_S = 20.0
# A host that sends a newer state deletes the files of the one before, maybe while they are fetched.
_TRIES = 3

Say = Callable[[str], None]


@contextmanager
def carried(project: Path, home: Path, workspace: Path, stage: str, say: Say) -> Iterator[None]:
    """Takes up what another host has of a training, and sends its states while the block runs it.

    Neither slows it nor lets it fail: each written state is sent by a thread, and an outage is a line that
    `say` gets (a log's warning), after which it is tried again. Other stages than `train@...`, and a run
    without a default DVC remote, have nothing to carry.

    Args:
        project: The checkout whose default remote is used.
        home: The state folder of this host.
        workspace: That of the run on this host, `versioning.workspace.path_of`.
        stage: Name in dvc.yaml.
        say: Gets one sentence at a time, also from another thread.
    """
    name, _, architecture = stage.partition("@")
    carrier = None
    if name == "train" and architecture and default_remote(workspace):
        with _told(say, f"the state of {stage} is not carried to other hosts"):
            if shared := store(project):
                folder = checkpoint_folder(home, workspace, architecture)
                carrier = _Carrier(shared, folder, f"{_ROOT}/{workspace.name}/{stage}", home, say)
    if carrier is None:
        yield
        return
    with _told(say, f"{stage} starts from what this host has of it"):
        carrier.fetch()
    with carrier.sending():
        yield


def forget(project: Path, workspace: Path, say: Say) -> None:
    """Deletes the states of a run, whose candidates are registered; an outage is a line that `say` gets."""
    if default_remote(workspace) is None:
        return
    with _told(say, f"the training states of {workspace.name} are still stored"):
        if shared := store(project):
            shared.delete(f"{_ROOT}/{workspace.name}")


def forget_old(project: Path, keep_days: float, say: Say) -> None:
    """Deletes the states of runs that sent none for some days: they failed, or their deletion did."""
    with _told(say, "old training states are still stored"):
        if (shared := store(project)) is None:
            return
        young = time.time() - keep_days * 86_400
        newest: dict[str, float] = {}
        for name in shared.names(_ROOT):
            run = name.split("/")[1]
            if newest.get(run, 0.0) >= young:
                continue  # of a run there may be thousands
            newest[run] = max(newest.get(run, 0.0), shared.written_at(name))
        for run, at in newest.items():
            if at < young:
                shared.delete(f"{_ROOT}/{run}")


class _Carrier:
    """Carries the states of one training between its folder on this host and the storage."""

    def __init__(self, shared: Store, folder: Path, place: str, home: Path, say: Say) -> None:
        self._shared, self._folder, self._place, self._home, self._say = shared, folder, place, home, say
        self._sent: tuple[int, int] | None = None
        self._ended, self._failed = threading.Event(), False

    def fetch(self) -> None:
        """Takes up the newest stored state, if it is further than the one of the same training here."""
        for _ in range(_TRIES):
            newest = Bundle.newest(self._shared, self._place, self._home)
            if newest is None:
                return
            here = read_position(self._folder)
            reached = tuple(map(int, newest.about["order"].split()))
            if here and (here[0] != newest.about["fingerprint"] or here[1].order >= reached):
                return
            with _empty(self._folder.with_name(f"{self._folder.name}.fetched")) as fetched:
                if newest.fetch(self._shared, self._place, fetched, newest.files):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    # The state last: what it calls the best has to be there.
                    for name in sorted(newest.files, key=lambda name: name == STATE_FILE):
                        (fetched / name).replace(self._folder / name)
                    self._say(f"goes on from the state that host {newest.about['host']} had reached")
                    return

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Sends each state that is written while the block runs, and the last one where it fails."""
        thread = threading.Thread(target=self._send_all, name=f"send {self._place}", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            self._ended.set()
            thread.join(_LAST_SENDING_S if self._failed else _LOOKS_EVERY_S)

    def _send_all(self) -> None:
        down = False
        while not self._ended.wait(_AGAIN_AFTER_S if down else _LOOKS_EVERY_S):
            down = self._send_or_say(down)
        if self._failed:
            self._send_or_say(down)

    def _send_or_say(self, down: bool) -> bool:
        """Sends what is new and returns whether that failed; of an outage the first and the last are told."""
        try:
            sent = self._send()
        except (OpenMedError, OSError) as error:
            if not down:
                self._say(f"the state of the training was not sent, which is tried again: {error}")
            return True
        if down and sent:
            self._say("the state of the training is sent again")
        return down and not sent

    def _send(self) -> bool:
        """Sends the state in the folder; False where there is none that was not sent before."""
        state = _identity(self._folder)
        if state in (None, self._sent):
            return False
        with _pinned(self._folder) as pinned:
            if (here := read_position(pinned)) is None:
                return False  # it is just being replaced
            fingerprint, position = here
            names = [STATE_FILE, *([position.best_file] if position.best else [])]
            about = {
                "fingerprint": fingerprint,
                "order": " ".join(map(str, position.order)),
                "host": socket.gethostname(),
            }
            files = {name: sha256_file(pinned / name) for name in names}
            Bundle(files, about).publish(self._shared, self._place, self._home, pinned)
        self._sent = state
        return True


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells the state in a folder from the one before; None where there is none."""
    with suppress(FileNotFoundError):
        found = (folder / STATE_FILE).stat()
        return found.st_ino, found.st_mtime_ns
    return None


@contextmanager
def _pinned(folder: Path) -> Iterator[Path]:
    """Gives a folder of links to a state's files as they are now, whatever the training writes meanwhile."""
    with _empty(folder.with_name(f"{folder.name}.sent")) as pinned:
        # The state first: the best weights that it names are deleted after it is replaced.
        for file in (folder / STATE_FILE, *folder.glob(f"{BEST_PREFIX}*")):
            with suppress(FileNotFoundError):
                link_or_copy(file, pinned / file.name)
        yield pinned


@contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(say: Say, consequence: str) -> Iterator[None]:
    """Lets an error that ends no task be one line: what comes of it, and why."""
    try:
        yield
    except (OpenMedError, OSError) as error:
        say(f"{consequence}: {error}")
