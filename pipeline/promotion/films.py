"""The films that a version was judged on, in the workspace of its retraining on this host.

Hides that the retraining ran elsewhere, or that its workspace is gone since: what is missing is made again
from the registry, the DVC cache and the default DVC remote.
"""

import logging
from pathlib import Path

from openmed.errors import BadInput, ResourceError
from openmed.files import write_bytes
from pipeline import registry
from pipeline.settings.yaml_file import read_mapping
from pipeline.versioning import handover, workspace
from pipeline.versioning.objects import store


def films_at_hand(project: Path, home: Path, version: str, *, at_any_rate: bool = False) -> Path | None:
    """Returns the workspace of the retraining of a version, with all that gates and reviewers see of it.

    None where its commit or films are gone, which the log then says. Where a remote may give them later, that
    is an error as long as they are wanted `at_any_rate`.

    Raises:
        BadInput: There is no such version.
        IntegrityError: Its settings or its dvc.lock are not what was registered, or a film on the remote is
            damaged.
        ResourceError: The registry does not answer; or they cannot be had now.
    """
    tags = registry.get_version(version).tags
    params, lock = (registry.artifact(version, name) for name in ("params.yaml", "dvc.lock"))
    try:
        folder = workspace.find(project, tags["revision"], tags["run_key"], home, any_seed=True)
        if (folder / "params.yaml").read_bytes() != params.read_bytes():
            # A run may have set values that are in no commit.
            write_bytes(folder / "params.yaml", params.read_bytes())
        stages = {
            name: entry
            for name, entry in read_mapping(lock)["stages"].items()
            if any(registry.is_shown(out["path"]) for out in entry.get("outs") or [])
        }
        handover.receive(folder, stages, registry.is_shown)
    except (BadInput, ResourceError) as error:
        if at_any_rate and isinstance(error, ResourceError) and store(project) is not None:
            raise
        logging.getLogger(__name__).warning("version %s is judged without its films: %s", version, error)
        return None
    return folder
