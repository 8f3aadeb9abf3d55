"""`openmed live`: new films scored with the champion, and how it does on them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmed.errors import BadInput
from openmed.files import write_text
from pipeline.commands.printing import Json, number, print_json
from pipeline.settings.plain_text import plain
from pipeline.settings.project import home

if TYPE_CHECKING:
    from pipeline.monitoring.oversight import ModelUse

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
def note(
    film: Annotated[str, typer.Argument(help="The film's file, or its SHA-256.")],
    decision: Annotated[
        str,
        typer.Option(help="What you call the film, a class of the model; or `refer`, to leave it to others."),
    ],
    by: Annotated[str, typer.Option(help="Who decides.")],
    as_json: Json = False,
) -> None:
    """Keeps a reader's own decision on a film that was answered."""
    from pipeline.monitoring import note as keep

    done = keep(home(), film, decision, by)
    if as_json:
        print_json(asdict(done) | {"overrules": done.overrules})
        return
    said = "referred the film" if done.refer else f"said {done.label}"
    overruled = " and is overruled" if done.overrules else ""
    print(f"{done.decision} by {plain(done.by)}: {done.model} {said}{overruled}")


@live.command()
def log(
    film: Annotated[
        str | None, typer.Argument(help="A film's file or SHA-256: what was said and decided of it.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="A last hash that was noted before: was it ever the last?")
    ] = None,
    as_json: Json = False,
) -> None:
    """Checks the log of answers and tells what is in it; ends with exit code 3 where it was changed."""
    from pipeline.monitoring import film_story, read_log

    state = read_log(home(), head)
    if film is not None:
        _print_story(film_story(home(), film), as_json)
    elif as_json:
        print_json(state.to_json())
    else:
        for use in state.models:
            answers = f"{use.answers} answers, {use.referred} referred{_overruled(use)}"
            print(f"{use.model}, since {use.since}: {answers}")
        for at in state.breaks:
            print(f"It did not go on at {at} from what the record of decisions knew of it")
        print(f"The log is whole; its last hash is {state.head}")
        for name, last in state.others.items():
            print(f"That of host {name} is {last}")


def _overruled(use: "ModelUse") -> str:
    if not use.decided:
        return ""
    share = f"{number(use.share.value)} [{number(use.share.low)}, {number(use.share.high)}]"
    return f"; readers decided {use.decided} too and overruled {use.overruled}: {share}"


def _print_story(entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        said = "refer" if entry["refer"] else entry["label"]
        what = f"{entry['decision']}, by {plain(entry['by'])}" if "decision" in entry else said
        print(f"{entry['at']}  {entry['event']}  {what}  ({entry['model']})")
    if not entries:
        print("nothing is known of this film")


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
    if result.problem:
        print(f"The alias answers no films: {result.problem}")
    if result.hold:
        print("It is on hold: `openmed registry rollback` or `release` ends that")
    print(f"The page: {result.page}")
