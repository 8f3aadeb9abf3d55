"""`openmed external`: sets of films from elsewhere, added and listed."""

from pathlib import Path
from typing import Annotated

import typer

from openmed.errors import BadInput
from pipeline.commands import printing
from pipeline.commands.printing import Json, PatientsFrom, cell, joined, print_json
from pipeline.settings.project import home, project_root

external = typer.Typer(help="Films from elsewhere, which judge every candidate.", no_args_is_help=True)


@external.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the set: lower-case letters, digits and dashes.")],
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, or a CSV manifest.")],
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE=CLASS", help="What the source calls a class; repeatable."),
    ] = None,
    second_label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the CSV with a second reader's label."),
    ] = None,
    patients_from: PatientsFrom = "auto",
    as_json: Json = False,
) -> None:
    """Puts films from elsewhere under DVC as a set that never changes."""
    from pipeline.settings.params import load_params
    from pipeline.versioning.external_import import add_set

    root = project_root()
    params = load_params(root / "params.yaml")
    aliases = dict(_alias(text) for text in classes or [])
    done = add_set(
        root,
        home(),
        name,
        source,
        params,
        printing.teller(as_json),
        aliases=aliases,
        second_label=second_label,
        patients_from=patients_from,
    )
    if as_json:
        print_json(done)
        return
    counts = f"{joined(done['classes'])}; {joined(done['views'])}"
    print(f"external/{name}: {done['films']} films of {done['patients']} patients ({counts})")
    if done["second_labels"]:
        print(f"{done['second_labels']} films have a second label")
    printing.print_left_out(done["skipped"], done["withheld"])
    if done["unusable"]:
        print(f"{done['unusable']} films are unusable and will not be scored")
    print(
        f"Next: commit external/{name}.dvc, and name {name} in change_plan.yaml under "
        "protocol.evaluation.external.sets if it shall count"
    )


@external.command("list")
def list_(as_json: Json = False) -> None:
    """Lists the sets with what they hold."""
    from pipeline.versioning.external_sets import described_sets

    sets = described_sets(project_root())
    if as_json:
        print_json(sets)
        return
    rows = [
        [
            one["name"],
            cell(one.get("films")),
            cell(one.get("patients")),
            *(joined(one.get(part, {})) for part in ("classes", "views")),
            one["md5"][:8],
        ]
        for one in sets
    ]
    printing.print_table(("name", "films", "patients", "classes", "views", "data"), rows)


def _alias(text: str) -> tuple[str, str]:
    alias, sign, name = (part.strip() for part in text.rpartition("="))
    if not sign or not alias:
        raise BadInput(f"{text!r} does not say what a class is called: give VALUE=CLASS")
    return alias, name
