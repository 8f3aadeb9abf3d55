"""The registry of models: the only package that knows MLflow.

Hides how a retraining is stored, found and decided on. What is logged describes films by the hash of their
content and patients by a number that means nothing outside one retraining; nothing is pickled.
"""

from pipeline.registry.candidates import register_candidates
from pipeline.registry.models import load, load_predictor, stored, verify
from pipeline.registry.profiles import champion_profile
from pipeline.registry.retraining import films_of
from pipeline.registry.scoring import score_champion, score_films
from pipeline.registry.store import CHALLENGER, CHAMPION, EXPERIMENT, MODEL_NAME, PREVIOUS
from pipeline.registry.versions import (
    aliases,
    artifact,
    champion,
    drop_alias,
    get_version,
    keep_record,
    list_versions,
    move_champion,
    report_address,
    set_tags,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "EXPERIMENT",
    "MODEL_NAME",
    "PREVIOUS",
    "aliases",
    "artifact",
    "champion",
    "champion_profile",
    "drop_alias",
    "films_of",
    "get_version",
    "keep_record",
    "list_versions",
    "load",
    "load_predictor",
    "move_champion",
    "register_candidates",
    "report_address",
    "score_champion",
    "score_films",
    "set_tags",
    "stored",
    "verify",
]
