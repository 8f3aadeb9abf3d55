"""Measures and decodes films ahead of `validate` and `preprocess`, by ranges of archives, on any host.

What a host learns goes into its film store, and over the storage that hosts share into that of the host on
which a stage runs: the stage finds it there and does what is left. So nothing that comes out hangs on what
was done here, and what is lost or damaged on the way is done again. Films in files of their own are left to
the stages. The objects lie in `states/RUN/films`, under the seal of the site, and go with the states.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from openmed.archives import place_of
from openmed.cache.film_store import FilmStore
from openmed.cache.shards import SHARD_FILMS
from openmed.dataset.manifest import FILMS_FILE, read_films
from openmed.dataset.parts import Part, learn, read_part, write_part
from openmed.errors import IntegrityError
from openmed.files import sha256_file, write_text
from pipeline.settings.artifacts import DATA, film_store_folder
from pipeline.settings.params import load_params
from pipeline.versioning.handover import name_data
from pipeline.versioning.objects import NEWEST, Bundle, Store, store
from pipeline.versioning.workspace import default_remote, is_whole

_TEMPORARY = Path(".dvc", "tmp")
_HERE = _TEMPORARY / "openmed-films"
"""Names of the parts that this host knows of a run, in its workspace."""
Say = Callable[[str], None]


def measure(
    project: Path, home: Path, workspace: Path, number: int, of: int, *, resend: bool = False, say: Say
) -> str:
    """Measures and decodes the films of one range of archives, and sends what was new to this host.

    Args:
        project: The checkout whose default DVC remote is used; without one there is one host, and nothing is
            sent.
        home: The state folder of this host.
        workspace: That of the run on this host; to a bare one come the archives of the range alone.
        number: Which range, from 0.
        of: How many ranges there are.
        resend: Sends what this host knew before, too.
        say: Gets one sentence at a time.

    Returns:
        One sentence.

    Raises:
        BadInput, IntegrityError: As the stages `validate` and `preprocess`.
        ResourceError: The archives are not to be had, or the remote does not answer.
    """
    params = load_params(workspace / "params.yaml")
    sizes = {params.preprocess.image_size_px[name] for name in params.architectures}
    smallest, films, new = params.validate_.min_side_px, 0, 0
    shared = store(project) if default_remote(workspace) else None
    resend = resend and shared is not None  # to whom else
    (workspace / _TEMPORARY).mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=workspace / _TEMPORARY) as folder,
        FilmStore(film_store_folder(home)) as known,
    ):
        data = _data(workspace, [FILMS_FILE], Path(folder))
        parts = list(_parts(read_films(data, params.task.classes)))
        chosen = range(len(parts) * number // of, len(parts) * (number + 1) // of)
        data = _data(workspace, dict.fromkeys(parts[each][0] for each in chosen), Path(folder))
        for each in chosen:
            archive, rows = parts[each]
            part = learn(data, rows, sizes, known, min_side_px=smallest, everything=resend)
            say(f"{archive}: {len(rows)} films, {part.new} of them new to this host")
            films, new = films + len(rows), new + part.new
            if shared and (part.new or resend):
                _send(shared, workspace, f"{each:05d}", home, part, known)
        known.tidy()
    return f"{films} films in {len(chosen)} of {len(parts)} archives were measured, {new} of them anew."


def take_over(project: Path, home: Path, workspace: Path, say: Say) -> None:
    """Takes what other hosts have learnt for a run into the film store of this one.

    What is damaged, gone or made by other code is left out, and `say` gets a sentence. ResourceError where
    the remote does not answer.
    """
    if not default_remote(workspace) or (shared := store(project)) is None:
        return
    names = (name.split("/") for name in shared.names(_place(workspace)))
    lacking = [parts[-2] for parts in names if parts[-1] == NEWEST and not _is_here(workspace, parts[-2])]
    taken = 0
    with FilmStore(film_store_folder(home)) as known:
        for name in lacking:
            try:
                said = _take_one(shared, workspace, name, home, known)
            except IntegrityError as error:
                said = str(error)
            if said:
                say(f"films are measured again here: {said}")
                continue
            _note(workspace, name)
            taken += 1
    if lacking:
        say(f"took over what other hosts have learnt of the films in {taken} of {len(lacking)} archives")


def _data(workspace: Path, names: Iterable[str], folder: Path) -> Path:
    """Returns where some files of the data are: in the workspace, or in a folder that gets them."""
    if is_whole(workspace):
        return workspace / DATA
    name_data(workspace, names, folder)
    return folder


def _send(shared: Store, workspace: Path, name: str, home: Path, part: Part, known: FilmStore) -> None:
    with TemporaryDirectory(dir=workspace / _TEMPORARY) as folder:
        files = {file: sha256_file(Path(folder, file)) for file in write_part(part, known, Path(folder))}
        bundle = Bundle(files, {"code": known.code})
        bundle.publish(shared, _place(workspace, name), home, Path(folder))
    _note(workspace, name)


def _take_one(shared: Store, workspace: Path, name: str, home: Path, known: FilmStore) -> str | None:
    """Takes over one part; returns why it cannot be used, None where it was."""
    place = _place(workspace, name)
    part = Bundle.newest(shared, place, home)
    if part is not None and part.about["code"] != known.code:
        return f"{place} on {shared.remote} was made with other code than that of this host"
    with TemporaryDirectory(dir=workspace / _TEMPORARY) as folder:
        if part is None or not part.fetch(shared, place, Path(folder), part.files):
            return f"{place} on {shared.remote} is gone"
        read_part(Path(folder), known)
    return None


def _parts(films: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Gives each archive that a list of films names, in the order of the list, with its rows."""
    places = [place_of(path) for path in films["path"]]
    archives = pd.Series([None if p.offset is None else p.file for p in places], index=films.index)
    for archive, rows in films.groupby(archives, sort=False):
        for start in range(0, len(rows), SHARD_FILMS):
            yield str(archive), rows.iloc[start : start + SHARD_FILMS]


def _place(workspace: Path, part: str = "") -> str:
    return "/".join(filter(None, ("states", workspace.name, "films", part)))


def _note(workspace: Path, part: str) -> None:
    (workspace / _HERE).mkdir(parents=True, exist_ok=True)
    write_text(workspace / _HERE / part, "")


def _is_here(workspace: Path, part: str) -> bool:
    return (workspace / _HERE / part).exists()
