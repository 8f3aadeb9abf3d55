"""Whether a version is still what was registered, judged and decided: every link, from data to alias.

Hides where the parts lie in the store. A link is recomputed from what is stored and held against the record
of decisions, never against another thing that could have been changed along with it.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openmed.errors import BadInput, IntegrityError, OpenMedError, ResourceError
from openmed.files import check_hashes, hashes_below, read_json, sha256_bytes
from pipeline.ledger import mirror, record, repository
from pipeline.ledger.champion import settled, standing_hold, steady, tags_of, verdict_problem
from pipeline.ledger.entry import PROMOTED, REGISTERED, REJECTED, RESTORED, SHOWN, Entry
from pipeline.ledger.mirror import Mirror
from pipeline.ledger.signatures import check_entry
from pipeline.registry.evidence import numbers, settings
from pipeline.registry.models import check_files, load_predictor
from pipeline.registry.recomputed import check_external, check_verdict, same
from pipeline.registry.retraining import edited_since
from pipeline.registry.reviews import REVIEWS
from pipeline.settings.plan import LOGIN, PLAN_FILE
from pipeline.settings.project import project_root
from pipeline.settings.yaml_file import read_yaml
from pipeline.tools.git import git
from pipeline.tracking.store import ENTRY_TAG, MODEL_NAME, connect, fetched
from pipeline.tracking.versions import artifact, find, logged_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

# Tags too long to be repeated in the record, where their hash stands for them.
_HASHED = ("evidence", "shared_evidence", "model_files")
_DECIDED = (
    *("decision", "approved_by", "approved_at", "comment", "rejected_by", "rejected_at"),
    *("reason", "by", "at", "replaced_by"),
)
_ORIGIN = ("run_key", "revision", "data_md5", "started_by")


class Link(NamedTuple):
    """One link of the chain: what it covers, what is wrong with it or None, and why it was not checked."""

    name: str
    problem: str | None
    unchecked: str | None = None


@dataclass(frozen=True)
class _Chain:
    """What the links are checked on."""

    client: "MlflowClient"
    entries: list[Entry]
    shown: Mirror
    version: "ModelVersion"
    alias_problem: str | None

    @property
    def number(self) -> str:
        return str(self.version.version)

    @property
    def what(self) -> str:
        return f"version {self.number}"

    def run(self) -> "Run":
        return self.client.get_run(self.version.run_id)

    def parent(self) -> "Run":
        return self.client.get_run(self.run().data.tags["mlflow.parentRunId"])


def registration(client: "MlflowClient", version: str) -> dict[str, Any]:
    """Returns what the record says of a new version: all its tags, long lists by their hash."""
    tags = find(client, version).tags
    own = {key: value for key, value in tags.items() if not (ENTRY_TAG.fullmatch(key) or key in _DECIDED)}
    return {key: sha256_bytes(value.encode()) if key in _HASHED else value for key, value in own.items()}


def verify(version: str) -> list[Link]:
    """Checks every link of a version, from the record itself to the alias, up to the first broken one."""
    with connect() as client:
        # No decision is made while record, tags and aliases are read. What takes long is checked without the
        # lock: whoever asks for the champion would wait for it.
        with repository.exclusive():
            registered = find(client, version)
            shown = mirror.NOTHING

            def read() -> list[Entry]:
                nonlocal shown
                shown = mirror.read(client)
                entries = record.written(shown)
                mirror.check(shown, entries)
                return entries

            try:
                entries, problem = steady(read)
            except IntegrityError as error:
                return [Link("record of decisions", str(error))]
            chain = _Chain(client, entries, shown, registered, problem)
        links = [Link("record of decisions", None)]
        for name, check in _LINKS.items():
            links.append(_checked(name, check, chain))
            if links[-1].problem:
                break
    return links


def check(version: str) -> None:
    """Checks all that a decision on a version stands on: every link but those of decisions made before.

    Raises:
        IntegrityError: A link is broken; the sentence says which.
    """
    for link in verify(version):
        if link.problem and link.name not in ("decisions", "aliases", "champion"):
            raise IntegrityError(link.problem)


def _checked(name: str, check: Callable[[_Chain], str | None], chain: _Chain) -> Link:
    try:
        return Link(name, None, check(chain))
    except ResourceError:
        raise
    except OpenMedError as error:
        return Link(name, str(error))
    except (KeyError, TypeError, ValueError) as error:
        return Link(name, f"it cannot be read ({type(error).__name__}): restore the registry from its backup")


def _registration(chain: _Chain) -> None:
    wanted = (REGISTERED, chain.number)
    entry = next((each for each in chain.entries if (each.event, each.version) == wanted), None)
    if entry is None:
        raise IntegrityError(f"the record knows no registration of {chain.what}: register it again")
    same(registration(chain.client, chain.number), entry.content, f"tag %s of {chain.what}")


def _origin(chain: _Chain) -> None:
    """Data version, code, settings and split, as the run of the whole retraining holds them."""
    tags, parent = chain.version.tags, chain.parent()
    for run in (parent, chain.run()):
        same({key: run.data.tags.get(key) for key in _ORIGIN}, {key: tags[key] for key in _ORIGIN}, "tag %s")
    with _files_of(chain.client, parent.info.run_id) as folder:
        check_hashes(hashes_below(folder), json.loads(tags["shared_evidence"]), "the retraining")
        _check_lock(folder / "dvc.lock", tags["data_md5"])


def _check_lock(path: Path, data_md5: str) -> None:
    lock = read_yaml(path)
    read = {dep.get("md5") for dep in lock["stages"]["validate"]["deps"] if dep["path"] == "data"}
    if read != {data_md5}:
        raise IntegrityError(f"dvc.lock of the retraining read other data than {data_md5}: retrain")


def _evidence(chain: _Chain) -> None:
    """Files on the candidate, and the numbers that MLflow shows of it."""
    run = chain.run()
    with _files_of(chain.client, run.info.run_id) as folder:
        shown: dict[str, str] = {}
        for entry in chain.entries:
            if entry.event == SHOWN and entry.version == chain.number:
                shown |= {entry.content["path"]: entry.content["sha256"], **entry.content.get("pictures", {})}
        # A page whose entry was never written was shown to nobody.
        hashes = {
            path: digest
            for path, digest in hashes_below(folder).items()
            if path in shown or not path.startswith(f"{REVIEWS}/")
        }
        check_hashes(hashes, json.loads(chain.version.tags["evidence"]) | shown, chain.what)
        params = read_yaml(folder / "params.yaml")
        measured = numbers(read_json(folder / "metrics.json"), folder / "history.csv")
    same(dict(run.data.params), settings(params, chain.version.tags["architecture"]), "setting %s in MLflow")
    # Sets: the phases of a training each count from 1, and of equal values at a step MLflow keeps one.
    logged = {
        (key, point.step, point.value)
        for key in run.data.metrics
        for point in chain.client.get_metric_history(run.info.run_id, key)
    }
    if different := logged ^ set(measured):
        key, step, _ = min(different)
        raise IntegrityError(
            f"metric {key} at step {step} in MLflow is not what was recorded: restore the registry from its "
            "backup"
        )


def _commit(chain: _Chain) -> str | None:
    """Change plan and settings, as the commit that the version names has them."""
    commit, files = chain.version.tags["revision"], logged_files(chain.number)
    try:
        # By its whole hash: a name may lead to another commit by now.
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", commit):
            raise BadInput(f"{commit} is no commit's hash")
        root = project_root()
        git(root, "--no-replace-objects", "cat-file", "commit", commit)
    except BadInput:
        return f"the project here has no commit {commit}: ask where it is, or fetch it"
    plan, params = files.find(PLAN_FILE), files.get("params.yaml")
    if edited := edited_since(root, commit, plan, params, what=chain.what):
        raise IntegrityError(f"{edited}: it was registered otherwise than it was committed; retrain")
    return None


def _control(chain: _Chain) -> None:
    """The stored model, asked again on the films that lay nearest its threshold."""
    from openmed.inference.control import CONTROL_FILE, check_control

    predictor = load_predictor(f"models:/{MODEL_NAME}/{chain.number}")
    check_control(artifact(chain.number, CONTROL_FILE), predictor)


def _verdict(chain: _Chain) -> None:
    with _files_of(chain.client, chain.version.run_id) as folder:
        check_verdict(chain.version, folder)


def _decisions(chain: _Chain) -> None:
    """What MLflow shows of the decisions on the version, and that each was about this model."""
    mirror.check(chain.shown, chain.entries, complete=True)
    expected: dict[str, str] = {}
    for entry in chain.entries:
        if entry.event in (PROMOTED, RESTORED, REJECTED):
            expected |= tags_of(entry).get(chain.number, {})
        if (entry.event, entry.version) == (PROMOTED, chain.number):
            shown_model = {"model_sha256": entry.content["model_sha256"]}
            own_model = {"model_sha256": sha256_bytes(chain.version.tags["model_files"].encode())}
            same(shown_model, own_model, f"%s in the promotion of {chain.what}")
        if entry.version == chain.number:
            _check_signatures(chain, entry)
    shown = {key: chain.version.tags[key] for key in _DECIDED if key in chain.version.tags}
    same(shown, expected, f"tag %s of {chain.what}")


def _check_signatures(chain: _Chain, entry: Entry) -> None:
    """That who decided has signed it, by the keys of the change plan that was registered with the version."""
    keys = {}
    if entry.event == PROMOTED:
        evidence = json.loads(chain.version.tags["evidence"])
        if PLAN_FILE in evidence:
            plan = read_yaml(artifact(chain.number, PLAN_FILE))
            listed = plan["protocol"].get("keys", {})
            keys = {role: lines for role, lines in listed.items() if lines != LOGIN}
        if "plan_sha256" in entry.content:
            same({"plan": entry.content["plan_sha256"]}, {"plan": evidence.get(PLAN_FILE)}, "change %s")
    check_entry(chain.entries, entry, keys)


def _alias(chain: _Chain) -> None:
    if chain.alias_problem:
        raise IntegrityError(chain.alias_problem)


def _champion(chain: _Chain) -> None:
    """That the version may answer, if it is the champion."""
    if chain.number != settled(chain.entries):
        return
    if problem := verdict_problem(chain.entries, chain.number):
        raise IntegrityError(problem)
    if (hold := standing_hold(chain.entries, chain.number)) is not None:
        raise IntegrityError(
            f"{chain.what}, the champion, is on hold since {hold.at}, by {hold.by}: {hold.reason}"
        )


_LINKS: dict[str, Callable[[_Chain], str | None]] = {
    "registration": _registration,
    "data, code, settings and split": _origin,
    "evidence": _evidence,
    "plan and settings of the commit": _commit,
    "model": lambda chain: check_files(chain.client, chain.version),
    "control set": _control,
    "verdict": _verdict,
    "films from elsewhere": lambda chain: check_external(chain.version),
    "decisions": _decisions,
    "aliases": _alias,
    "champion": _champion,
}


@contextmanager
def _files_of(client: "MlflowClient", run_id: str) -> Iterator[Path]:
    """Fetches all files of a run for as long as the block lasts."""
    with fetched(client.get_run(run_id).info.artifact_uri, f"the evidence of {MODEL_NAME}") as folder:
        yield folder
