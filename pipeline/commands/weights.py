"""`openmed weights`: the vault of weights to start from."""

from pathlib import Path
from typing import Annotated

import typer

from openmed.errors import IntegrityError
from pipeline.commands.printing import Json, cell, print_json, print_table, teller
from pipeline.settings.project import project_root

weights = typer.Typer(help="Weights to start from: fill the vault, list it.", no_args_is_help=True)


@weights.command()
def pull(
    params: Annotated[
        Path | None, typer.Option(help="Settings that name the networks; default: params.yaml.")
    ] = None,
    champion: Annotated[bool, typer.Option("--champion", help="The champion, not ImageNet weights.")] = False,
    as_json: Json = False,
) -> None:
    """Puts the ImageNet weights, or the champion, into the vault and commits its version."""
    from pipeline.versioning.weights import pull_champion, pull_imagenet

    root = project_root()
    pull_weights = pull_champion if champion else pull_imagenet
    done = pull_weights(root, params or root / "params.yaml", teller(as_json))
    if as_json:
        print_json(done)


@weights.command("list")
def list_weights(as_json: Json = False) -> None:
    """Lists what the vault holds; ends with exit code 3 when a file is damaged or missing."""
    from pipeline.versioning.weights import list_vault

    held = list_vault(project_root())
    if as_json:
        print_json(held)
    else:
        columns = ("kind", "network", "source", "revision", "licence", "bytes", "sha256", "state")
        keys = ("kind", "timm_name", *columns[2:])
        print_table(columns, [[cell(entry[key]) for key in keys] for entry in held])
    if bad := [f"{entry['file']} is {entry['state']}" for entry in held if entry["state"] != "intact"]:
        raise IntegrityError(f"{' and '.join(bad)}: get it back with `dvc checkout --force weights.dvc`")
