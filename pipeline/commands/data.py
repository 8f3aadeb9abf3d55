"""`openmed data`: films imported, added, listed by version, drawn, and compared with the champion's."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import printing
from pipeline.commands.printing import Json, PatientsFrom, cell, joined, print_json
from pipeline.settings.project import home, project_root

data = typer.Typer(help="Films: import or add yours, list versions, draw the sample.", no_args_is_help=True)

SourceName = Annotated[
    str, typer.Option(help="Hospital or archive that the films come from: a short name of your own.")
]


@data.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, or a CSV manifest.")],
    to: Annotated[Path | None, typer.Option(help="Data folder to write; default: data/.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take about this many films, whole patients.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace the films that are there.")] = False,
    source_name: SourceName = "",
    patients_from: PatientsFrom = "auto",
    as_json: Json = False,
) -> None:
    """Lays films out as a data folder, and says what names their patients."""
    from openmed.intake.importing import import_films
    from pipeline.settings.params import load_params
    from pipeline.versioning.data_versions import POINTER, write_counts
    from pipeline.versioning.dataset import new_folder, own_remote
    from pipeline.versioning.site import pseudonyms

    root = project_root()
    target = to or root / "data"
    params = load_params(root / "params.yaml")
    with new_folder(target, replace=replace, kept=(source, root, home())) as folder:
        summary = import_films(
            source,
            folder,
            class_names=params.task.classes,
            pseudonyms=pseudonyms(home()),
            limit=limit,
            seed=params.run.seed,
            source_name=source_name,
            patients_from=patients_from,
        )
    own = target.resolve() == (root / "data").resolve()
    if own and (root / POINTER).is_file():
        own_remote(root)
        write_counts(root, params)  # `dvc add` keeps them, and could not tell films from archives
    if as_json:
        print_json(summary.to_json())
        return
    classes = joined(summary.per_class)
    print(f"{target}: {summary.films} films of {summary.patients} patients ({classes})")
    printing.print_left_out(summary.skipped, summary.withheld)
    if summary.merged_validation:
        print(
            f"{summary.merged_validation} films declared for validation are too few and went back to training"
        )
    for sentence in summary.recognised.sentences():
        print(sentence)
    if own:
        print("Next: `dvc add data`, then commit data.dvc")


@data.command()
def add(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, or a CSV manifest.")],
    source_name: SourceName = "",
    patients_from: PatientsFrom = "auto",
    as_json: Json = False,
) -> None:
    """Adds films, commits the new data version and starts a retraining."""
    from pipeline.settings.params import load_params
    from pipeline.versioning.data_versions import add_version

    root = project_root()
    params = load_params(root / "params.yaml")
    options = {"source_name": source_name, "patients_from": patients_from}
    done = add_version(root, home(), source, params, printing.teller(as_json), **options)
    if as_json:
        print_json(vars(done))


@data.command()
def log(as_json: Json = False) -> None:
    """Lists the data versions, newest first; any of them can be trained again by its revision."""
    from dataclasses import asdict

    from pipeline.versioning.data_versions import log_versions

    versions = log_versions(project_root())
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    columns = ("revision", "date", "films", "patients", "classes", "data", "subject")
    rows = [
        [
            version.revision[:10],
            version.date[:16].replace("T", " "),
            cell(version.films),
            cell(version.patients),
            joined(version.classes),
            version.md5[:8] if version.md5 else "damaged",
            version.subject,
        ]
        for version in versions
    ]
    printing.print_table(columns, rows)


@data.command()
def sample(
    to: Annotated[Path, typer.Argument(help="Folder to write.")],
    films: Annotated[int, typer.Option(min=40, help="How many films.")] = 560,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 7,
) -> None:
    """Draws chest-film phantoms, as the bundled sample was drawn."""
    from openmed.phantoms.phantom import write_sample
    from pipeline.versioning.dataset import new_folder

    with new_folder(to, replace=False) as folder:
        write_sample(folder, films=films, seed=seed)
    print(f"{to}: {films} phantoms")


@data.command()
def drift(
    accept: Annotated[bool, typer.Option("--accept", help="End well although the shift is large.")] = False,
    as_json: Json = False,
) -> None:
    """Compares the films that were validated last with those of the champion."""
    from pipeline.monitoring.drift import check_drift

    root = project_root()
    result = check_drift(root, accept=accept)
    if as_json:
        print_json(result.to_json())
        return
    print(f"{result.sentence}\nThe page: {root / 'artifacts' / 'drift' / 'drift.html'}")
