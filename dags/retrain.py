"""Retraining: the stages of dvc.yaml as tasks, in a workspace of their own.

The stage graph is not written here. It is read from dvc.yaml beside this folder, and what is added
is what DVC must not own: time, the workspace and the registry.
"""

import ast
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import host
from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Metadata,
    Param,
    TaskGroup,
    task,
)
from airflow.sdk.exceptions import AirflowFailException
from handing import KEEP_WORKSPACES_DAYS, entries, hand_on, handed, needed, tidy, workspace_of
from host import TIMEZONE, SpreadTries, enter_project, one_sentence
from people import starter
from places import place
from stage_operator import DvcStageOperator

from pipeline.settings.artifacts import MANIFEST
from pipeline.settings.params import load_stages
from pipeline.settings.variables import variables
from pipeline.tools.dvc_graph import load_graph

# DAG bundles may be parsed from a copy elsewhere, so the graph comes from beside this file.
SOURCE = Path(__file__).resolve().parents[1]
STAGES = load_graph(SOURCE / "dvc.yaml")
RANGES = load_stages(SOURCE / "params.yaml").map_over
# They measure and decode films, which tasks on other hosts may have done before.
FILM_STAGES = {"validate", "preprocess"}
DATASET = Asset("openmed_dataset")  # pipeline.tools.airflow_client.DATASET names it too
CANDIDATE = Asset("openmed_candidate")
GPU_STAGES = {"train"}
LOG = logging.getLogger("airflow.task")

ABOUT = """
Retrains all architectures on the committed state of the project and registers the candidates.

Starts every week, when the asset `openmed_dataset` gets an event, or by hand. Each run works in a
git worktree of its own under the state folder; a failed run keeps it, so that a cleared task goes
on where it was. Before any training the films are compared with those of the champion: a large shift
fails the run unless `accept_drift` is set. A new candidate starts the DAG `promote`. The pool `gpu`
limits how many trainings run at once.
"""

PARAMS = {
    "revision": Param(
        "HEAD", type="string", minLength=1, title="Revision", description="Commit, tag or branch"
    ),
    "seed": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        maximum=2**32 - 1,
        title="Seed",
        description="Overrides params.yaml",
    ),
    "force": Param(False, type="boolean", title="Force", description="Runs stages although nothing changed"),
    "accept_drift": Param(
        False,
        type="boolean",
        title="Accept drift",
        description="Trains although the films differ too much from those of the champion",
    ),
    "note": Param(None, type=["null", "string"], maxLength=500, title="Note", description="Why this run"),
}


def schedule() -> Any:
    """Returns when to retrain: on new data, and by cron unless OPENMED_SCHEDULE is `off`."""
    cron = variables().schedule
    if cron == "off":
        return [DATASET]
    # By default a DAG without a start date makes up for the last slot when less than a tenth of
    # the period has passed since: 17 hours for a weekly one. So merely starting the services on a
    # Sunday would start a training. Five minutes are enough for the scheduler never to miss a slot.
    timetable = CronTriggerTimetable(cron, timezone=TIMEZONE, run_immediately=timedelta(minutes=5))
    return AssetOrTimeSchedule(timetable=timetable, assets=[DATASET])


def stage_doc(name: str) -> str:
    """Returns the first line of the docstring of a stage's module, without importing it."""
    module = SOURCE / "pipeline" / "stages" / f"{name.partition('@')[0]}.py"
    doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) if module.is_file() else None
    return (doc or f"Stage {name} of dvc.yaml.").splitlines()[0]


def stage_tasks() -> dict[str, DvcStageOperator]:
    """Makes one task a stage, `train@vit` as task `vit` of group `train`, and joins them."""
    groups = {
        name: TaskGroup(name) for name in dict.fromkeys(n.partition("@")[0] for n in STAGES if "@" in n)
    }
    tasks = {}
    for name, stage in STAGES.items():
        kind, _, item = name.partition("@")
        tasks[name] = DvcStageOperator(
            task_id=item or kind,
            task_group=groups.get(kind) if item else None,
            stage=name,
            force="{{ params.force }}",
            learns=RANGES > 1 and name in FILM_STAGES,
            pool="gpu" if kind in GPU_STAGES else "default_pool",
            execution_timeout=timedelta(hours=12 if kind in GPU_STAGES else 4),
            doc_md=f"{stage_doc(name)}\n\n`{stage.cmd}`",
            **place(kind in GPU_STAGES),
        )
    for name, stage in STAGES.items():
        for other in stage.upstream:
            tasks[other] >> tasks[name]
    return tasks


def events_of(triggering_asset_events: Any) -> list[Any]:
    """Returns the events of assets that started a run, none where it was started otherwise."""
    return [event for events in dict(triggering_asset_events or {}).values() for event in events]


@task(
    execution_timeout=timedelta(hours=2),
    doc_md="Fixes the commit and the seed of this run, and makes its workspace on this host.",
)
def prepare(*, params: dict[str, Any], dag_run: Any, triggering_asset_events: Any, ti: Any) -> dict[str, Any]:
    """Returns the commit and the seed; fails where it is unknown who started the run."""
    from pipeline.versioning import workspace

    starter(dag_run, events := events_of(triggering_asset_events))
    seed = params["seed"]
    extras = [event.extra or {} for event in sorted(events, key=lambda event: event.timestamp)]
    newer = [str(extra["revision"]) for extra in extras if "revision" in extra]
    with one_sentence():
        tidy(ti)
        path = workspace.create(
            host.PROJECT, params["revision"], ti.run_id, host.HOME, seed=seed, newer=newer
        )
        if load_graph(path / "dvc.yaml") != STAGES:
            raise AirflowFailException(
                f"revision {params['revision']} has other stages in dvc.yaml than this DAG shows; "
                "check that revision out in the main checkout, or commit dvc.yaml and params.yaml"
            )
        begun = {"revision": workspace.commit_of(path), "seed": seed, "note": params["note"] or ""}
    return hand_on(ti, begun)


@task(
    execution_timeout=timedelta(hours=4),
    doc_md="Measures and decodes the films of one range of archives, on any host, and hands on what it "
    "learnt to `validate` and `preprocess`. `stages.map_over` of params.yaml says how many ranges there are.",
)
def measure(*, number: int, of: int, ti: Any) -> str:
    """Says in one sentence what was measured."""
    from pipeline.stages import ranges

    path = workspace_of(ti, bare=True)
    with one_sentence():
        # What a try that failed has learnt is not new to this host any more, and was maybe not sent.
        resend = ti.try_number > 1
        return ranges.measure(host.PROJECT, host.HOME, path, number, of, resend=resend, say=LOG.info)


@task(
    execution_timeout=timedelta(minutes=30),
    doc_md="Compares the films with those of the champion and stops the run, before any training, when they "
    "differ too much and `accept_drift` is not set. The page is artifacts/drift/drift.html in the workspace, "
    "on the default DVC remote where there is one, and in MLflow once the run has registered its candidates.",
)
def drift(*, params: dict[str, Any], ti: Any) -> dict[str, Any]:
    """Returns the comparison with its verdict and sentence, which name no film and no patient."""
    from pipeline.monitoring.drift import check_drift
    from pipeline.versioning import handover

    path = workspace_of(ti)
    enter_project()
    with one_sentence():
        handover.receive(path, entries(ti, ["validate"]), MANIFEST.as_posix().__eq__)
        try:
            result = check_drift(path, accept=params["accept_drift"])
        finally:
            handover.show(host.PROJECT, path, path / "artifacts/drift/drift.html", LOG.info)
    return hand_on(ti, result.to_json())


@task(
    outlets=[CANDIDATE],
    execution_timeout=timedelta(hours=1),
    # What is trained waits for a registry that is down: with the pauses growing to 15 minutes, about a day.
    retries=100,
    doc_md="Registers each trained model as a candidate version and announces the best one.",
)
def register(*, dag_run: Any, triggering_asset_events: Any, ti: Any) -> Any:
    """Emits the candidate asset, whose event starts the DAG `promote`."""
    from pipeline import registry
    from pipeline.monitoring.drift import restore_drift
    from pipeline.versioning import handover, training_states

    path, revision, compared = workspace_of(ti), needed(ti, "prepare")["revision"], handed(ti, "drift")
    enter_project()
    with one_sentence():
        handover.receive(path, entries(ti, STAGES), registry.is_read)
        if compared is not None:
            restore_drift(path, compared)
        result = registry.register_candidates(
            path,
            run_key=ti.run_id,
            revision=revision,
            started_by=starter(dag_run, events_of(triggering_asset_events)),
        )
        training_states.forget(host.PROJECT, path, LOG.warning)
    chosen = {key: getattr(result, key) for key in ("version", "architecture", "verdict", "run_id", "order")}
    yield Metadata(CANDIDATE, {**chosen, "revision": revision, "retrain_run": ti.run_id})
    return hand_on(ti, chosen)


@task(
    execution_timeout=timedelta(minutes=30),
    doc_md="Removes the workspaces of earlier complete runs from this host; another host does so when a run "
    "next comes to it. The one of this run stays: complete, until the next one is; failed, "
    f"{KEEP_WORKSPACES_DAYS:g} days, so that its tasks can be cleared and go on.",
)
def cleanup(*, ti: Any) -> str:
    """Says in one sentence what became of the workspace."""
    from pipeline.versioning import training_states, workspace

    folder = workspace.path_of(ti.run_id, host.HOME)
    # On a host that had no part in the run it is not known whether there is a remote.
    if workspace.default_remote(folder) or not folder.exists():
        with one_sentence():
            training_states.forget_old(host.PROJECT, KEEP_WORKSPACES_DAYS, LOG.warning)
    if handed(ti, "register") is None:
        return f"The run is not complete: its workspaces are kept for {KEEP_WORKSPACES_DAYS:g} days."
    with one_sentence():
        removed = workspace.retire(host.PROJECT, folder)
    return f"The workspace of this run is kept for the gate; {len(removed)} earlier ones are removed."


with DAG(
    dag_id="retrain",
    description="Retrain all architectures and register the candidates",
    doc_md=ABOUT,
    schedule=schedule(),
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    tags=["openmed", "training"],
    default_args={
        "owner": "ml-engineering",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=15),
        "retry_policy": SpreadTries(),
    },
) as dag:
    ready, compared, registered, cleaned = prepare(), drift(), register(), cleanup()
    stages = stage_tasks()
    ready >> [stages[name] for name, stage in STAGES.items() if not stage.upstream]
    if RANGES > 1:
        ready >> measure.partial(of=RANGES).expand(number=list(range(RANGES))) >> stages["validate"]
    stages["validate"] >> compared >> [stages[n] for n in STAGES if n.partition("@")[0] in GPU_STAGES]
    read = {other for stage in STAGES.values() for other in stage.upstream}
    [stages[name] for name in STAGES if name not in read] >> registered
    registered >> cleaned.as_teardown(setups=ready.as_setup())
