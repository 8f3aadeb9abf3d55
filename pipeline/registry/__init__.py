"""The registry of models: the only package that knows MLflow.

Hides how a retraining is stored, found and decided on. What is logged describes films by the hash of their
content and patients by a number that means nothing outside one retraining; nothing is pickled.
"""

from pipeline.ledger.decisions import (
    adopt,
    champion,
    finish,
    first_champion,
    history,
    hold,
    keep_review,
    last_decision,
    move_champion,
    on_hold,
    reject,
    release,
    repair,
)
from pipeline.ledger.record import ADOPTED, HELD, PROMOTED, REGISTERED, REJECTED, RELEASED, RESTORED, Entry
from pipeline.ledger.story import story
from pipeline.registry.candidates import register_candidates
from pipeline.registry.models import check_model, hold_warning, load, load_predictor, stored, version_at
from pipeline.registry.profiles import champion_profile
from pipeline.registry.retraining import films_of
from pipeline.registry.scoring import Scored, earlier, score_earlier, score_films
from pipeline.registry.verification import Link, check, verify
from pipeline.tracking.store import CHALLENGER, CHAMPION, EXPERIMENT, MODEL_NAME, PREVIOUS
from pipeline.tracking.versions import (
    aliases,
    artifact,
    find_artifact,
    get_version,
    list_versions,
    model_digest,
    report_address,
)

__all__ = [
    "ADOPTED",
    "CHALLENGER",
    "CHAMPION",
    "EXPERIMENT",
    "HELD",
    "MODEL_NAME",
    "PREVIOUS",
    "PROMOTED",
    "REGISTERED",
    "REJECTED",
    "RELEASED",
    "RESTORED",
    "Entry",
    "Link",
    "Scored",
    "adopt",
    "aliases",
    "artifact",
    "champion",
    "champion_profile",
    "check",
    "check_model",
    "earlier",
    "films_of",
    "find_artifact",
    "finish",
    "first_champion",
    "get_version",
    "history",
    "hold",
    "hold_warning",
    "keep_review",
    "last_decision",
    "list_versions",
    "load",
    "load_predictor",
    "model_digest",
    "move_champion",
    "on_hold",
    "register_candidates",
    "reject",
    "release",
    "repair",
    "report_address",
    "score_earlier",
    "score_films",
    "stored",
    "story",
    "verify",
    "version_at",
]
