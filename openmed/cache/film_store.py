"""What was learnt from films, kept by their content, so that work is proportional to what is new.

Hides a small database and the array files beside it. Everything in it can be deleted at any time: it
is computed again. Everything that comes out of it was checked against a hash.
"""

import hashlib
import mmap
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import time_ns

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openmed.archives import FilmState, state_of
from openmed.cache.shards import SHARD_FILMS
from openmed.errors import ResourceError
from openmed.files import atomic_path, sha256_bytes, sha256_file

_DATABASE = "films.db"
_TABLES = """
DROP TABLE IF EXISTS seen;
CREATE TABLE IF NOT EXISTS hashed (device INT, inode INT, place INT, modified_ns INT, bytes INT, sha256 TEXT,
    PRIMARY KEY (device, inode, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS measurements (film TEXT, code TEXT, block INT,
    PRIMARY KEY (film, code)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (block INTEGER PRIMARY KEY, code TEXT, content BLOB, digest TEXT);
CREATE TABLE IF NOT EXISTS squares (film TEXT, size_px INT, code TEXT, file TEXT, place INT, digest TEXT,
    PRIMARY KEY (film, size_px, code)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (file TEXT, code TEXT, digest TEXT, PRIMARY KEY (file)) WITHOUT ROWID;
"""
# A file that was written to within one tick of the file system's clock after it was hashed looks unchanged.
_CLOCK_TICK_NS = 100_000_000
_LOCK_WAIT_S = 120
_QUERY_ROWS = 500
_PACKAGES = ("films", "measurement")
_DECODERS = (
    *("numpy", "opencv-python-headless", "pillow", "pydicom", "pylibjpeg-openjpeg"),
    *("python-gdcm", "simplejpeg"),
)


class FilmStore(AbstractContextManager):
    """Measurements and decoded squares of films, by the SHA-256 of their files.

    What was made by other code than the present one (of `openmed.films` and `openmed.measurement`, OpenCV,
    the DICOM decoders) is not used. Several processes may use one store. ResourceError where its folder,
    which is made when missing, cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.code = _code_fingerprint()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._database = self._open()
        except (OSError, sqlite3.Error) as error:
            raise ResourceError(f"the film store {self.folder} cannot be used: {error}") from None

    def _open(self) -> sqlite3.Connection:
        path = self.folder / _DATABASE
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            path.unlink()  # not a database any more, and nothing in it is the only copy
            return _connect(path)

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def hashes_of(self, paths: Sequence[str]) -> list[str | None]:
        """Returns the SHA-256 of films that were hashed before and have not been written to since, else None.

        A film counts as unwritten while the place of its file on the disk, its place in there, and the size
        and time of change of the file are the same.
        """
        states = [state_of(path) for path in paths]
        known: dict[FilmState, str] = {}
        for device in {state.device for state in states if state}:
            inodes = sorted({state.inode for state in states if state and state.device == device})
            query = "SELECT * FROM hashed WHERE inode IN ({}) AND device = ?"
            for *state, sha256 in self._in_parts(query, inodes, (device,)):
                known[FilmState(*state)] = sha256
        return [known.get(state) if state else None for state in states]

    def remember_hashes(self, hashed: Sequence[tuple[FilmState, str]]) -> None:
        """Keeps the hashes of films, each with the state it had before it was read."""
        now = time_ns()
        rows = [(*state, digest) for state, digest in hashed if now - state.modified_ns > _CLOCK_TICK_NS]
        with self._changes() as database:
            database.executemany("INSERT OR REPLACE INTO hashed VALUES (?, ?, ?, ?, ?, ?)", rows)

    def measurements(self, films: Sequence[str]) -> list[pa.Table]:
        """Returns what is known of films, by SHA-256, in tables as remembered; unknown films are absent."""
        query = "SELECT DISTINCT block FROM measurements WHERE film IN ({}) AND code = ?"
        blocks = {block for (block,) in self._in_parts(query, films, (self.code,))}
        wanted, known = pa.array(films, pa.string()), []
        query = "SELECT content, digest FROM blocks WHERE block IN ({})"
        for content, digest in self._in_parts(query, sorted(blocks), ()):
            if sha256_bytes(content) == digest:
                table = pa.ipc.open_stream(content).read_all()
                known.append(table.filter(pc.is_in(table["sha256"], wanted)))
        return known

    def remember_measurements(self, measured: pa.Table) -> None:
        """Keeps measurements: one row a film, its SHA-256 in the column sha256."""
        if not len(measured):
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, measured.schema) as stream:
            stream.write_table(measured)
        content = sink.getvalue().to_pybytes()
        with self._changes() as database:
            row = (self.code, content, sha256_bytes(content))
            block = database.execute("INSERT INTO blocks VALUES (NULL, ?, ?, ?)", row).lastrowid
            films = [(film, self.code, block) for film in measured["sha256"].to_pylist()]
            database.executemany("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?)", films)

    def shards(
        self,
        films: Sequence[str],
        sizes_px: Sequence[int],
        decode: Callable[[Sequence[int]], Iterator[Sequence[np.ndarray]]],
    ) -> dict[int, tuple[Path, str]]:
        """Finds or makes the shard of a run of films at each size.

        `decode` yields the squares of films, by position, at all sizes, uint8 (s, s). It is called once, for
        those of the films, at most `SHARD_FILMS` by SHA-256, that are not in the store at some size.

        Returns:
            The file of each size, .npy uint8 (films, s, s), read-only, and its SHA-256.
        """
        if len(films) > SHARD_FILMS:
            raise ValueError(f"{len(films)} films do not fit a shard of {SHARD_FILMS}")
        files = {size: self._name(films, size) for size in sizes_px}
        digests = {size: digest for size, file in files.items() if (digest := self._whole(file))}
        missing = [size for size in sizes_px if size not in digests]
        if missing:
            arrays = {size: _empty(len(films), size) for size in missing}
            known = [self._take(films, array) for array in arrays.values()]
            new = np.flatnonzero(~np.logical_and.reduce(known))
            for position, squares in zip(new.tolist(), decode(new.tolist()), strict=True):
                for size, square in zip(sizes_px, squares, strict=True):
                    if size in arrays:
                        arrays[size][position] = square
            digests |= {size: self._keep(films, array, files[size]) for size, array in arrays.items()}
        return {size: (self.folder / files[size], digests[size]) for size in sizes_px}

    def lacking(self, films: Sequence[str], sizes_px: Sequence[int]) -> list[str]:
        """Returns those of some films, by SHA-256, whose squares are not here at some size, each once."""
        query = "SELECT film, size_px FROM squares WHERE film IN ({}) AND code = ?"
        known = set(self._in_parts(query, films, (self.code,)))
        return [film for film in dict.fromkeys(films) if any((film, size) not in known for size in sizes_px)]

    def tidy(self) -> None:
        """Deletes shards that nothing points to any more, and what other code made."""
        with self._changes() as database:
            for table in ("measurements", "squares", "shards"):
                database.execute(f"DELETE FROM {table} WHERE code != ?", (self.code,))
            database.execute("DELETE FROM blocks WHERE block NOT IN (SELECT block FROM measurements)")
            database.execute("DELETE FROM shards WHERE file NOT IN (SELECT DISTINCT file FROM squares)")
            kept = {file for (file,) in database.execute("SELECT file FROM shards")}
            for path in self.folder.glob("*.npy"):
                # A hidden file is one that another process is still writing.
                if path.name not in kept and not path.name.startswith("."):
                    path.unlink(missing_ok=True)

    def _name(self, films: Sequence[str], size_px: int) -> str:
        content = "\n".join([self.code, str(size_px), *films])
        return f"{sha256_bytes(content.encode())[:40]}.npy"

    def _whole(self, file: str) -> str | None:
        """Returns the hash of a shard that is there as it was written, None for any other."""
        recorded = self._database.execute("SELECT digest FROM shards WHERE file = ?", (file,)).fetchone()
        with suppress(OSError):
            if recorded and sha256_file(self.folder / file) == recorded[0]:
                return recorded[0]
        return None

    def _take(self, films: Sequence[str], array: np.ndarray) -> np.ndarray:
        """Copies the known squares into an array; returns which films were known, bool (films,)."""
        query = (
            "SELECT film, file, place, digest FROM squares WHERE film IN ({}) AND code = ? AND size_px = ?"
        )
        rows = self._in_parts(query, films, (self.code, array.shape[1]))
        places = {film: (file, place, digest) for film, file, place, digest in rows}
        opened: dict[str, np.ndarray | None] = {}
        known = np.zeros(len(films), bool)
        for position, film in enumerate(films):
            file, place, digest = places.get(film, ("", 0, ""))
            if file and file not in opened:
                opened[file] = _opened(self.folder / file, array.shape[1])
            source = opened.get(file)
            if source is not None and place < len(source) and _digest(source[place]) == digest:
                array[position], known[position] = source[place], True
        return known

    def _keep(self, films: Sequence[str], array: np.ndarray, file: str) -> str:
        squares = [
            (film, array.shape[1], self.code, file, place, _digest(square))
            for place, (film, square) in enumerate(zip(films, array, strict=True))
        ]
        # The file gets its name before the commit, under the lock, so that `tidy` never sees it alone.
        with self._changes() as database, atomic_path(self.folder / file) as temporary:
            np.save(temporary, array)
            temporary.chmod(0o444)  # it may be linked into workspaces
            digest = sha256_file(temporary)
            database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (file, self.code, digest))
            database.executemany("INSERT OR REPLACE INTO squares VALUES (?, ?, ?, ?, ?, ?)", squares)
        return digest

    def _in_parts(self, query: str, keys: Sequence[str | int], values: tuple) -> Iterator[tuple]:
        """Runs a query that asks for any of many keys; SQLite takes a bounded number at once."""
        for start in range(0, len(keys), _QUERY_ROWS):
            part = keys[start : start + _QUERY_ROWS]
            yield from self._database.execute(query.format(", ".join("?" * len(part))), (*part, *values))

    @contextmanager
    def _changes(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database:
                yield self._database
        except sqlite3.Error as error:
            raise ResourceError(f"the film store {self.folder} cannot be written: {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_LOCK_WAIT_S)
    # Losing the last seconds in a power cut costs a decode; waiting for the disk at each step costs more.
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(_TABLES)
    return database


def _opened(path: Path, size_px: int) -> np.ndarray | None:
    """Maps a shard; None when it is gone or is no such array."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return array if array.ndim == 3 and array.shape[1:] == (size_px, size_px) else None


def _empty(films: int, size_px: int) -> np.ndarray:
    """Makes an array that gives its memory back to the system; malloc would keep a part of each shard's."""
    memory = mmap.mmap(-1, films * size_px**2)
    return np.frombuffer(memory, np.uint8).reshape(films, size_px, size_px)


def _digest(square: np.ndarray) -> str:
    return hashlib.blake2b(square.tobytes(), digest_size=16).hexdigest()


def _code_fingerprint() -> str:
    """Names the code that films are read and measured with: two packages, and the decoders."""
    digest, library = hashlib.sha256(), Path(__file__).parents[1]
    for package in _PACKAGES:
        for source in sorted((library / package).rglob("*.py")):
            digest.update(source.read_bytes())
    for name in _DECODERS:
        with suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()[:16]
