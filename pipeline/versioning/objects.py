"""What the hosts of a project share beside its data: objects by name, on its default DVC remote.

They lie in the folder `openmed` of the remote, whatever kind of storage it is; DVC itself never looks there.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

from openmed.errors import BadInput, IntegrityError, OpenMedError, ResourceError
from openmed.files import atomic_path, sha256_file
from pipeline.versioning.site import is_sealed, seal

if TYPE_CHECKING:
    from dvc.fs import FileSystem

NEWEST = "newest.json"
_FOLDER = "openmed"
# No name leads out of the folder, and none is that of a file which is still being written.
_PART = re.compile(r"[A-Za-z0-9_@+=-][A-Za-z0-9._@+=-]*")
# By its own defaults the driver of S3 tries 25 times for a minute each before storage that hangs is out.
_WAITS_S = {"connect_timeout": 10, "read_timeout": 60}
_S3_TRIES = 2


def store(project: Path) -> "Store | None":
    """Returns the storage that all hosts of a project share; None where it has no default DVC remote.

    Args:
        project: A checkout with its `.dvc`.

    Raises:
        BadInput: The remote is not one that this installation can use.
        ResourceError: It does not answer.
    """
    from dvc.config import Config, ConfigError
    from dvc.fs import ConfigError as DriverError
    from dvc.fs import RemoteMissingDepsError, get_cloud_fs

    try:
        config = Config(dvc_dir=str(project / ".dvc"))
        name = config["core"].get("remote")
        if not name:
            return None
        kind, settings, path = get_cloud_fs(config, name=name)
        if kind.protocol != "s3":
            return Store(kind(**settings), path, name)
        files = kind(**(_WAITS_S | settings))
        files.fs_args.setdefault("config_kwargs", {})["retries"] = {"total_max_attempts": 1}
        with _answering(f"the DVC remote {name}"):
            files.fs.retries = _S3_TRIES
        return Store(files, path, name)
    except (ConfigError, DriverError, RemoteMissingDepsError, ImportError) as error:
        raise BadInput(f"the default DVC remote cannot be used: {error}") from None


class Store:
    """Objects by name, such as `states/RUN/STAGE/newest.json`.

    An object is seen whole or not at all, also by a host that looks while it is written. All methods raise
    ResourceError where the storage does not answer, and BadInput for a name that could lead elsewhere.
    """

    def __init__(self, files: "FileSystem", path: str, remote: str) -> None:
        self._files, self._root = files, files.join(path, _FOLDER)
        self.remote = f"the DVC remote {remote}"

    def put(self, name: str, source: Path) -> None:
        """Writes a file as an object, in the place of one of this name."""
        from dvc_objects.fs.base import ObjectFileSystem

        target = self._path(name)
        with _answering(self.remote):
            if self._files.protocol == "local":
                with atomic_path(Path(target)) as temporary:
                    self._files.put_file(str(source), str(temporary))
            elif isinstance(self._files, ObjectFileSystem):
                self._files.put_file(str(source), target)
            else:
                part = self._files.join(self._files.parent(target), f".{uuid4().hex}")
                self._files.makedirs(self._files.parent(target), exist_ok=True)
                self._files.put_file(str(source), part)
                self._files.mv(part, target)

    def get(self, name: str, target: Path) -> bool:
        """Writes an object to a file, atomically; False, and nothing is written, where there is none."""
        source = self._path(name)
        with _answering(self.remote):
            try:
                with atomic_path(target) as temporary:
                    self._files.get_file(source, str(temporary))
            except FileNotFoundError:
                return False
        return True

    def write(self, name: str, content: bytes) -> None:
        """Writes bytes as an object, in the place of one of this name."""
        with TemporaryDirectory() as folder:
            source = Path(folder) / "content"
            source.write_bytes(content)
            self.put(name, source)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small object; None where there is none."""
        source = self._path(name)
        with _answering(self.remote):
            try:
                return self._files.cat_file(source)
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """Returns the names of all objects below a folder, in order."""
        path = self._path(folder)
        with _answering(self.remote):
            self._files.fs.invalidate_cache()  # another host may have written since
            try:
                if self._files.protocol == "local":
                    next(Path(path).iterdir(), None)  # the walk would pass over a folder that cannot be read
                found = list(self._files.find(path))
            except FileNotFoundError:
                return []
        parts = ("/".join(self._files.relparts(file, self._root)) for file in found)
        return sorted(name for name in parts if _is_name(name))

    def written_at(self, name: str) -> float:
        """Returns when an object was written, in s since 1970 by the storage's clock; 0 if it is gone."""
        path = self._path(name)
        with _answering(self.remote):
            try:
                return self._files.modified(path).timestamp()
            except FileNotFoundError:
                return 0.0

    def delete(self, name: str) -> None:
        """Deletes an object, or all below a folder; one that is gone is no error."""
        path = self._path(name)
        with _answering(self.remote):
            self._files.fs.invalidate_cache()
            try:
                self._files.rm(path, recursive=True)
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        if not _is_name(name):
            raise BadInput(f"{name!r} is no name of an object")
        return self._files.join(self._root, *name.split("/"))


def _is_name(name: str) -> bool:
    return all(_PART.fullmatch(part) for part in name.split("/"))


@contextmanager
def _answering(remote: str) -> Iterator[None]:
    """Turns what the driver of a storage raises into one sentence; each driver has errors of its own."""
    try:
        yield
    except OpenMedError:
        raise
    except NotImplementedError:
        raise BadInput(
            f"{remote} is of a kind that cannot list or delete: share S3, SSH or a folder instead"
        ) from None
    except Exception as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise ResourceError(f"{remote} does not answer: {detail}") from None


@dataclass(frozen=True)
class Bundle:
    """Files that belong together, below one place of the storage; each lies under the hash of its content.

    The object `newest.json` there names them, under a seal that nobody can make without the site's secret.

    Attributes:
        files: Name -> SHA-256.
        about: What else the seal covers.
    """

    files: dict[str, str]
    about: dict[str, str]

    @classmethod
    def newest(cls, shared: Store, place: str, home: Path) -> "Bundle | None":
        """Reads what a place holds; None where nothing was published.

        Raises:
            IntegrityError: This site did not write it, or not there.
            ResourceError: The storage does not answer.
        """
        if (stored := shared.read(f"{place}/{NEWEST}")) is None:
            return None
        try:
            envelope = json.loads(stored)
            content = str(envelope["content"])
        except (ValueError, KeyError, TypeError, RecursionError):
            envelope, content = None, ""
        what = f"{place} on {shared.remote}"
        if not is_sealed(_bound(place, content), envelope, home, what):
            raise IntegrityError(f"{what} has no valid seal: something else wrote it")
        return cls(**json.loads(content))

    def publish(self, shared: Store, place: str, home: Path, folder: Path) -> None:
        """Stores files of a folder in the place of what was published there before; one host at a time."""
        there = set(shared.names(place))
        for name, digest in self.files.items():
            if f"{place}/{digest}" not in there:
                shared.put(f"{place}/{digest}", folder / name)
        content = json.dumps(asdict(self), sort_keys=True)
        envelope = {"content": content, **seal(_bound(place, content), home)}
        shared.write(f"{place}/{NEWEST}", json.dumps(envelope).encode())
        for name in there - {f"{place}/{kept}" for kept in (NEWEST, *self.files.values())}:
            shared.delete(name)

    def fetch(self, shared: Store, place: str, folder: Path, names: Iterable[str]) -> bool:
        """Writes files into a folder; False where the bundle was replaced meanwhile by a newer one.

        Raises:
            IntegrityError: A file is not the one that was stored.
            ResourceError: The storage does not answer.
        """
        for name in names:
            if not shared.get(f"{place}/{self.files[name]}", folder / name):
                return False
            if sha256_file(folder / name) != self.files[name]:
                raise IntegrityError(f"{name} of {place} on {shared.remote} was changed since it was sent")
        return True


def _bound(place: str, content: str) -> str:
    return f"bundle\n{place}\n{content}"
