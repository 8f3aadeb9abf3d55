"""The registry of models: what MLflow holds of them.

Hides how a retraining is stored and found. What is logged describes films by the hash of their content and
patients by a number that means nothing outside one retraining; nothing is pickled.
"""

from pipeline.ledger import version_of
from pipeline.registry.candidates import register_candidates
from pipeline.registry.models import (
    answering,
    check_model,
    check_recorded,
    hold_warning,
    load,
    load_predictor,
    recorded_hold,
    resolve,
    stored,
    stored_whole,
    version_at,
)
from pipeline.registry.profiles import champion_profile, profile_of
from pipeline.registry.retraining import films_of, is_read, is_shown
from pipeline.registry.reviews import keep_review
from pipeline.registry.scoring import Scored, Unscored, earlier, score_earlier
from pipeline.registry.serving_format import DATA_FOLDER
from pipeline.registry.verification import check, verify
from pipeline.tracking.store import MODEL_NAME
from pipeline.tracking.versions import (
    Files,
    artifact,
    get_version,
    list_versions,
    logged_files,
    model_digest,
    report_address,
)
