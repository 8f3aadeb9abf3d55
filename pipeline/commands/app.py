"""The `openmed` command. Everything heavy is imported by the command that needs it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmed.errors import IntegrityError
from pipeline.commands.data import data
from pipeline.commands.external import external
from pipeline.commands.live import live
from pipeline.commands.printing import Json, PatientsFrom, cell, number, print_json, print_table
from pipeline.commands.registry import registry
from pipeline.commands.weights import weights
from pipeline.settings.project import environment, home, project_root

if TYPE_CHECKING:
    from openmed.inference.answers import FilmAnswer

app = typer.Typer(
    help="Retrain, judge, explain and promote chest X-ray classifiers. For research, not a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data, name="data")
app.add_typer(external, name="external")
app.add_typer(weights, name="weights")
app.add_typer(registry, name="registry")
app.add_typer(live, name="live")

Model = Annotated[str, typer.Argument(help="A model folder, or models:/openmed-cxr@champion or /VERSION.")]
Films = Annotated[Path, typer.Argument(metavar="DATA", help="Folder or zip of class folders.")]
With = Annotated[
    list[str] | None, typer.Option("--with", metavar="MODEL", help="Average with this model; repeatable.")
]
Tta = Annotated[bool, typer.Option("--tta", help="Average over small rotations and zooms of each film.")]
Threshold = Annotated[
    float | None, typer.Option(help="Instead of the model's own; --with and --tta need one of theirs.")
]


def main() -> None:
    """Runs the command; errors become one sentence and an exit code."""
    from pipeline.tools.terminal import guarded

    environment()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    sys.exit(guarded(lambda: app(args=arguments, prog_name="openmed"), debug=debug))


@app.callback()
def _all(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Takes --debug anywhere; `main` has read it before."""


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Film files.")],
    others: With = None,
    tta: Tta = False,
    threshold: Threshold = None,
    as_json: Json = False,
) -> None:
    """Predicts films."""
    from pipeline.inference import assemble, predict_films

    models = [model, *(others or [])]
    warning = _warned(models)
    ensemble = assemble(models, threshold=threshold, views=tta)
    about = {"model": " + ".join(models), "warning": warning}
    for path, film in zip(images, predict_films(ensemble, images), strict=True):
        if as_json:
            print(json.dumps({"path": str(path), **vars(film), **about}))
        else:
            refer = f"  refer to a radiologist: {film.reason}" if film.refer else ""
            print(f"{path}  {film.label}  {_probability(film)}{refer}")


def _warned(models: list[str]) -> str | None:
    """Warns of versions on hold that are named by number; an alias of one is refused when it is loaded."""
    from pipeline.registry import hold_warning

    warning = "; ".join(sentence for each in models if (sentence := hold_warning(each)))
    if warning:
        typer.echo(f"warning: {warning}", err=True)
    return warning or None


def _probability(film: "FilmAnswer") -> str:
    """The probability of the finding; of several, each with its name."""
    if len(film.thresholds) < 2:
        at = "" if film.threshold is None else f"  (threshold {film.threshold:.3f})"
        return f"{film.probability:.3f}{at}"
    return ", ".join(
        f"{name} {film.probabilities[name]:.3f} (threshold {point:.3f})"
        for name, point in film.thresholds.items()
    )


@app.command()
def evaluate(
    model: Model,
    films: Films,
    others: With = None,
    tta: Tta = False,
    threshold: Threshold = None,
    patients_from: PatientsFrom = "auto",
    as_json: Json = False,
) -> None:
    """Judges a model at its frozen threshold on films it has never seen."""
    from pipeline.inference import assemble, evaluate_source

    models = [model, *(others or [])]
    warning = _warned(models)
    ensemble = assemble(models, threshold=threshold, views=tta)
    result = evaluate_source(ensemble, films, patients_from=patients_from)
    if as_json:
        print_json(result.to_json() | {"model": " + ".join(models), "warning": warning})
        return
    for index, (name, each) in enumerate(result.findings.items()):
        title = name if index else f"{result.n} films of {result.patients} patients"
        print(f"{title}, threshold {each.threshold:.3f}")
        for metric, item in each.intervals.items():
            print(f"{metric:12} {number(item.value)}  [{number(item.low)}, {number(item.high)}]")
    if len(result.confusion) > 2:
        rows = [[name, *map(str, row.values())] for name, row in result.confusion.items()]
        print_table(("has, is called", *result.confusion), rows)
    if result.unusable:
        print(f"{result.unusable} films could not be used and were left out")
    for sentence in result.recognised.sentences():
        print(sentence)
    for reason, films_ in (result.referred or {}).items():
        if films_:
            print(f"{films_} films referred to a radiologist: {reason}")


@app.command("threshold")
def threshold_(
    model: Model,
    films: Films,
    others: With = None,
    tta: Tta = False,
    target_sensitivity: Annotated[float, typer.Option(min=0, max=1, help="Sensitivity to reach.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Chooses a threshold, for --with and --tta above all, on films kept for that."""
    from pipeline.inference import assemble, threshold_on

    models = [model, *(others or [])]
    _warned(models)
    result = threshold_on(assemble(models, views=tta), films, target_sensitivity)
    if as_json:
        print_json(vars(result) | {"model": " + ".join(models)})
        return
    print(f"--threshold {result.threshold:.9g}")


@app.command()
def explain(
    model: Model,
    image: Annotated[Path, typer.Argument(help="A film file.")],
    out: Annotated[Path, typer.Option(help="Picture to write, a .jpg.")],
    finding: Annotated[
        str | None, typer.Option(help="Class that the map speaks for; default: the first finding.")
    ] = None,
) -> None:
    """Writes the heat map of a film."""
    from pipeline.inference import explain_film
    from pipeline.registry import load

    _warned([model])
    for path in explain_film(load(model), image, out, finding):
        print(path)


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="Version of the registry to train again.")],
    as_json: Json = False,
) -> None:
    """Trains a version again from its recorded code, data and settings; exit code 3 when it differs."""
    from pipeline.promotion.reproduce import DIFFERENT
    from pipeline.promotion.reproduce import reproduce as train_again

    result = train_again(project_root(), home(), version)
    if as_json:
        print_json(result)
    else:
        pairs = result["metrics"].items()
        rows = [[name, cell(pair["recorded"]), cell(pair["found"])] for name, pair in pairs]
        print_table(("", "recorded", "now"), rows)
        print(f"version {version}: {result['agreement']}")
    if result["agreement"] == DIFFERENT:
        raise IntegrityError(f"version {version} came out otherwise: compare the versions of the libraries")


@app.command()
def up(
    airflow_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8080,
    mlflow_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 5000,
    gpu_slots: Annotated[int, typer.Option(min=1, help="Trainings that may run at once.")] = 1,
) -> None:
    """Starts Airflow and MLflow on this machine, until Ctrl-C or `openmed down`."""
    from pipeline.local.services import up as start

    start(project_root(), home(), airflow_port=airflow_port, mlflow_port=mlflow_port, gpu_slots=gpu_slots)


@app.command()
def down() -> None:
    """Stops what `openmed up` started for this state folder, from any terminal."""
    from pipeline.tools.processes import down as stop

    ended = stop(home())
    print(f"{ended} processes were ended" if ended else f"no services of {home()} are running")


@app.command()
def worker(
    queues: Annotated[str, typer.Option(help="Queues to take tasks from, separated by commas.")] = "default",
    slots: Annotated[int, typer.Option(min=1, help="Tasks that may run at once.")] = 4,
) -> None:
    """Runs tasks of an Airflow on another host, until Ctrl-C: docs/deployment.md."""
    from pipeline.local.worker import run_worker

    run_worker(project_root(), home(), queues, slots)


@app.command()
def demo(
    films: Annotated[Path | None, typer.Option("--data", help="Your films instead of the sample.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take about this many films.")] = None,
    patients_from: PatientsFrom = "auto",
) -> None:
    """Runs both DAGs once under a local Airflow and approves the model on your behalf."""
    from pipeline.local.demo import run_demo

    run_demo(project_root(), home(), films, limit, patients_from)


if __name__ == "__main__":
    main()
