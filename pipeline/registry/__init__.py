"""The registry of models: the only package that knows MLflow.

Hides how a retraining is stored, found and decided on. What is logged describes films by the hash of their
content and patients by a number that means nothing outside one retraining; nothing is pickled.
"""

from pipeline.registry.audit import ADOPTED, PROMOTED, REGISTERED, REJECTED, RESTORED, Entry
from pipeline.registry.candidates import register_candidates
from pipeline.registry.decisions import (
    adopt,
    champion,
    finish,
    history,
    keep_review,
    last_decision,
    move_champion,
    reject,
    repair,
)
from pipeline.registry.models import check_model, load, load_predictor, stored, version_at
from pipeline.registry.profiles import champion_profile
from pipeline.registry.retraining import films_of
from pipeline.registry.scoring import score_champion, score_films
from pipeline.registry.store import CHALLENGER, CHAMPION, EXPERIMENT, MODEL_NAME, PREVIOUS
from pipeline.registry.story import story
from pipeline.registry.verification import Link, check, verify
from pipeline.registry.versions import (
    aliases,
    artifact,
    find_artifact,
    get_version,
    list_versions,
    report_address,
)

__all__ = [
    "ADOPTED",
    "CHALLENGER",
    "CHAMPION",
    "EXPERIMENT",
    "MODEL_NAME",
    "PREVIOUS",
    "PROMOTED",
    "REGISTERED",
    "REJECTED",
    "RESTORED",
    "Entry",
    "Link",
    "adopt",
    "aliases",
    "artifact",
    "champion",
    "champion_profile",
    "check",
    "check_model",
    "films_of",
    "find_artifact",
    "finish",
    "get_version",
    "history",
    "keep_review",
    "last_decision",
    "list_versions",
    "load",
    "load_predictor",
    "move_champion",
    "register_candidates",
    "reject",
    "repair",
    "report_address",
    "score_champion",
    "score_films",
    "stored",
    "story",
    "verify",
    "version_at",
]
