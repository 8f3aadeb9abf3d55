"""`openmed live`: new films scored with the champion, and how it does on them."""

from pathlib import Path
from typing import Annotated

import typer

from openmed.errors import BadInput
from openmed.files import write_text
from pipeline.commands.printing import Json, print_json
from pipeline.settings.project import home

live = typer.Typer(help="New films: score them with the champion, watch how it does.", no_args_is_help=True)


@live.command()
def score(
    films: Annotated[Path, typer.Argument(help="Folder or zip of films, without labels.")],
    as_json: Json = False,
) -> None:
    """Scores the films that the champion has not scored yet; the answers are Parquet files."""
    from pipeline.monitoring import score_films

    done = score_films(home(), films)
    if as_json:
        print_json(vars(done))
        return
    print(
        f"version {done.version} scored {done.scored} films: {done.flagged} flagged, {done.referred} "
        f"referred to a radiologist; {done.unusable} unusable, {done.unreadable} unreadable, "
        f"{done.known} known before"
    )
    print(f"The answers: {done.log}")


@live.command()
def labels(
    films: Annotated[
        Path,
        typer.Argument(
            help="Folder or zip of class folders, a CSV manifest, or the list of `openmed live ask`."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Keeps what scored films turned out to be."""
    from pipeline.monitoring import add_labels
    from pipeline.settings.params import load_params
    from pipeline.settings.project import project_root

    done = add_labels(home(), films, load_params(project_root() / "params.yaml").task.classes)
    if as_json:
        print_json(done)
        return
    print(f"{done['films']} labels: {done['new']} new, {done['changed']} changed")


@live.command()
def ask(
    count: Annotated[int, typer.Argument(min=1, metavar="N", help="How many films to draw.")],
    out: Annotated[Path | None, typer.Option(help="CSV file for the list; default: printed.")] = None,
    films: Annotated[
        Path | None, typer.Option(help="Folder or zip of the films: the list then names their paths.")
    ] = None,
) -> None:
    """Draws the films whose labels tell most of the champion, as a list to fill in."""
    from pipeline.monitoring import ask as draw

    if out is None:
        print(draw(home(), count, films).csv, end="")
        return
    if out.exists():
        raise BadInput(f"{out} is there already and may hold labels: give another name")
    done = draw(home(), count, films)
    write_text(out, done.csv)
    print(
        f"{done.films} of the latest {done.frame} films of version {done.version} are in {out}: "
        f"fill in their labels, then `openmed live labels {out}`"
    )


@live.command()
def watch(as_json: Json = False) -> None:
    """Judges the champion on the latest films by its change plan; what fails puts it on hold.

    Ends with exit code 0 whatever the verdict.
    """
    from pipeline.monitoring import watch as judge

    result = judge(home())
    if as_json:
        print_json(result.to_json())
        return
    print(f"{result.verdict}: {result.sentence}")
    if result.hold:
        print("It is on hold: `openmed registry rollback` or `release` ends that")
    print(f"The page: {result.page}")
