"""The `openmed` command. Everything heavy is imported by the command that needs it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.live_cli import live
from pipeline.project import environment, home, project_root
from pipeline.registry_cli import registry
from pipeline.terminal import Json, cell, number, print_json, print_table

app = typer.Typer(
    help="Retrain, judge, explain and promote chest X-ray classifiers. For research, not a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Films: import or add yours, list versions, draw the sample.", no_args_is_help=True)
weights = typer.Typer(help="Weights to start from: fill the vault, list it.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(weights, name="weights")
app.add_typer(registry, name="registry")
app.add_typer(live, name="live")

Model = Annotated[str, typer.Argument(help="A model folder, or models:/openmed-cxr@champion or /VERSION.")]
Films = Annotated[Path, typer.Argument(metavar="DATA", help="Folder or zip of class folders.")]
SourceName = Annotated[
    str, typer.Option(help="Hospital or archive that the films come from: a short name of your own.")
]
With = Annotated[
    list[str] | None, typer.Option("--with", metavar="MODEL", help="Average with this model; repeatable.")
]
Tta = Annotated[bool, typer.Option("--tta", help="Average over small rotations and zooms of each film.")]
Threshold = Annotated[
    float | None, typer.Option(help="Instead of the model's own; --with and --tta need one of theirs.")
]


def main() -> None:
    """Runs the command; errors become one sentence and an exit code."""
    from pipeline.stage import guarded

    environment()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    sys.exit(guarded(lambda: app(args=arguments, prog_name="openmed"), debug=debug))


@app.callback()
def _all(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Takes --debug anywhere; `main` has read it before."""


@data.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, or a CSV manifest.")],
    to: Annotated[Path | None, typer.Option(help="Data folder to write; default: data/.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take about this many films, whole patients.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace the films that are there.")] = False,
    source_name: SourceName = "",
    as_json: Json = False,
) -> None:
    """Lays films out as a data folder, patients taken from the file names."""
    from openmed.data.importing import import_films
    from pipeline.dataset import new_folder, own_remote
    from pipeline.params import load_params
    from pipeline.site import pseudonyms

    root = project_root()
    target = to or root / "data"
    params = load_params(root / "params.yaml")
    with new_folder(target, replace=replace) as folder:
        summary = import_films(
            source,
            folder,
            class_names=params.task.classes,
            pseudonyms=pseudonyms(home()),
            limit=limit,
            seed=params.run.seed,
            source_name=source_name,
        )
    own = target.resolve() == (root / "data").resolve()
    if own:
        own_remote(root)
    if as_json:
        print_json(summary.to_json())
        return
    classes = ", ".join(f"{name} {count}" for name, count in summary.per_class.items())
    print(f"{target}: {summary.films} films of {summary.patients} patients ({classes})")
    if summary.skipped:
        print(f"{summary.skipped} files were passed over: they are not films")
    if summary.merged_validation:
        print(
            f"{summary.merged_validation} films declared for validation are too few and went back to training"
        )
    if summary.unmatched:
        print(f"{summary.unmatched} films name no patient: each counts as a patient of its own")
    if own:
        print("Next: `dvc add data`, then commit data.dvc")


@data.command()
def add(
    source: Annotated[Path, typer.Argument(help="Folder or zip of class folders, or a CSV manifest.")],
    source_name: SourceName = "",
    as_json: Json = False,
) -> None:
    """Adds films, commits the new data version and starts a retraining."""
    from pipeline.params import load_params
    from pipeline.versions import add_version

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    root = project_root()
    done = add_version(root, home(), source, load_params(root / "params.yaml"), say, source_name=source_name)
    if as_json:
        print_json(done)


@data.command()
def log(as_json: Json = False) -> None:
    """Lists the data versions, newest first; any of them can be trained again by its revision."""
    from dataclasses import asdict

    from pipeline.versions import log_versions

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
            ", ".join(f"{name} {count}" for name, count in version.classes.items()),
            version.md5[:8],
            version.subject,
        ]
        for version in versions
    ]
    print_table(columns, rows)


@data.command()
def sample(
    to: Annotated[Path, typer.Argument(help="Folder to write.")],
    films: Annotated[int, typer.Option(min=40, help="How many films.")] = 560,
    seed: Annotated[int, typer.Option(min=0)] = 7,
) -> None:
    """Draws chest-film phantoms, as the bundled sample was drawn."""
    from openmed.data.phantom import write_sample
    from pipeline.dataset import new_folder

    with new_folder(to, replace=False) as folder:
        write_sample(folder, films=films, seed=seed)
    print(f"{to}: {films} phantoms")


@data.command()
def drift(
    accept: Annotated[bool, typer.Option("--accept", help="End well although the shift is large.")] = False,
    as_json: Json = False,
) -> None:
    """Compares the films that were validated last with those of the champion."""
    from pipeline.drift import check_drift

    root = project_root()
    result = check_drift(root, accept=accept)
    if as_json:
        print_json(result)
        return
    print(f"{result['sentence']}\nThe page: {root / 'artifacts' / 'drift' / 'drift.html'}")


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
    ensemble = assemble(models, threshold=threshold, views=tta)
    for row in predict_films(ensemble, images, " + ".join(models)):
        if as_json:
            print(json.dumps(row))
        else:
            at = "" if row["threshold"] is None else f"  (threshold {row['threshold']:.3f})"
            refer = "  refer to a radiologist" if row["refer"] else ""
            print(f"{row['path']}  {row['label']}  {row['probability']:.3f}{at}{refer}")


@app.command()
def evaluate(
    model: Model,
    films: Films,
    others: With = None,
    tta: Tta = False,
    threshold: Threshold = None,
    as_json: Json = False,
) -> None:
    """Judges a model at its frozen threshold on films it has never seen."""
    from pipeline.inference import assemble, evaluate_source

    models = [model, *(others or [])]
    result = evaluate_source(assemble(models, threshold=threshold, views=tta), films)
    if as_json:
        print_json(result | {"model": " + ".join(models)})
        return
    print(f"{result['n']} films of {result['patients']} patients, threshold {result['threshold']:.3f}")
    for name, (low, high) in result["intervals"].items():
        print(f"{name:12} {number(result[name])}  [{number(low)}, {number(high)}]")
    if result["unusable"]:
        print(f"{result['unusable']} films could not be decoded and were left out")


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
    result = threshold_on(assemble(models, views=tta), films, target_sensitivity)
    if as_json:
        print_json(result | {"model": " + ".join(models)})
        return
    print(f"--threshold {result['threshold']:.9g}")


@app.command()
def explain(
    model: Model,
    image: Annotated[Path, typer.Argument(help="A film file.")],
    out: Annotated[Path, typer.Option(help="Picture to write, a .jpg.")],
) -> None:
    """Writes the heat map of a film."""
    from pipeline.inference import explain_film
    from pipeline.registry import load

    for path in explain_film(load(model), image, out):
        print(path)


@weights.command()
def pull(
    params: Annotated[
        Path | None, typer.Option(help="Settings that name the networks; default: params.yaml.")
    ] = None,
    champion: Annotated[bool, typer.Option("--champion", help="The champion, not ImageNet weights.")] = False,
    as_json: Json = False,
) -> None:
    """Puts the ImageNet weights, or the champion, into the vault and commits its version."""
    from pipeline.weights import pull_champion, pull_imagenet

    def say(text: str) -> None:
        print(text, file=sys.stderr if as_json else sys.stdout, flush=True)

    root = project_root()
    done = (pull_champion if champion else pull_imagenet)(root, params or root / "params.yaml", say)
    if as_json:
        print_json(done)


@weights.command("list")
def list_weights(as_json: Json = False) -> None:
    """Lists what the vault holds; ends with exit code 3 when a file is damaged or missing."""
    from openmed.errors import IntegrityError
    from pipeline.weights import list_vault

    held = list_vault(project_root())
    if as_json:
        print_json(held)
    else:
        columns = ("kind", "network", "source", "revision", "licence", "bytes", "sha256", "state")
        keys = ("kind", "timm_name", *columns[2:])
        print_table(columns, [[cell(entry[key]) for key in keys] for entry in held])
    if bad := [f"{entry['file']} is {entry['state']}" for entry in held if entry["state"] != "intact"]:
        raise IntegrityError(f"{' and '.join(bad)}: get it back with `dvc checkout --force weights.dvc`")


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(help="Version of the registry to train again.")],
    as_json: Json = False,
) -> None:
    """Trains a version again from its recorded code, data and settings; exit code 3 when it differs."""
    from openmed.errors import IntegrityError
    from pipeline.reproduce import DIFFERENT
    from pipeline.reproduce import reproduce as train_again

    result = train_again(project_root(), home(), version)
    if as_json:
        print_json(result)
    else:
        columns = ("", "recorded", "now")
        rows = [
            [name, cell(pair["recorded"]), cell(pair["found"])] for name, pair in result["metrics"].items()
        ]
        print_table(columns, rows)
        print(f"version {version}: {result['agreement']}")
    if result["agreement"] == DIFFERENT:
        raise IntegrityError(f"version {version} came out otherwise: compare the versions of the libraries")


@app.command()
def up(
    airflow_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8080,
    mlflow_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 5000,
    gpu_slots: Annotated[int, typer.Option(min=1, help="Trainings that may run at once.")] = 1,
) -> None:
    """Starts Airflow and MLflow on this machine, until Ctrl-C."""
    from pipeline.services import up as start

    start(project_root(), home(), airflow_port=airflow_port, mlflow_port=mlflow_port, gpu_slots=gpu_slots)


@app.command()
def demo(
    films: Annotated[Path | None, typer.Option("--data", help="Your films instead of the sample.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take about this many films.")] = None,
) -> None:
    """Runs both DAGs once under a local Airflow and approves the model on your behalf."""
    from pipeline.demo import run_demo

    run_demo(project_root(), home(), films, limit)


if __name__ == "__main__":
    main()
