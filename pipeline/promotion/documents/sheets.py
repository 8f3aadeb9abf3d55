"""Model card (Mitchell et al. 2019), data sheet (Gebru et al. 2021), record against the change plan."""

import json
from typing import Any

from pipeline.promotion.documents.facts import Facts, Item, group_lines


def model_card(facts: Facts) -> list[Item]:
    """Items of the model card."""
    evidence, tags, settings = facts.evidence, facts.evidence.tags, facts.settings
    spec = evidence.spec
    return _items(
        {
            "Model": {
                "architecture": f"{tags['architecture']} ({spec.timm_name}), input {spec.image_size_px} px",
                "version and weights": f"SHA-256 {tags['weights_sha256']}",
                "code": f"git {tags['revision']}",
                "started from": f"{spec.weights.get('kind', 'unknown')} weights",
                "training": json.dumps({key: settings.get(key) for key in ("head", "finetune")}),
                "contact": None,
            },
            "Intended use": {
                "purpose": "Decision support for research, not a diagnosis.",
                "classes": f"{', '.join(spec.class_names)}; findings: {', '.join(spec.findings)}",
                "users and setting": None,
                "uses it is not made for": None,
            },
            "Factors": {
                "groups of films": facts.of_each(group_lines),
                "groups of patients that matter and are not known": None,
            },
            "Metrics on test films": {
                "AUC": facts.measured("auc"),
                "sensitivity": facts.measured("sensitivity"),
                "specificity": facts.measured("specificity"),
                "threshold": facts.of_each(
                    lambda each: f"{each.spec.operating_point:.4f}, chosen on calibration films and frozen"
                ),
                "probabilities": f"calibrated by {spec.calibration.method}" if spec.calibration else None,
            },
            "Data": {
                "films": facts.split_counts(),
                "balance of the training rows": evidence.params.get("resample", {}).get("strategy"),
            },
            "Analysis": {
                "verdict of its gates": tags["verdict"],
                "what the test could not have shown": facts.limits(),
                "films from elsewhere": facts.elsewhere() or "nothing is known: no external set was scored",
                "heat maps": facts.maps(),
            },
            "Ethics and caveats": {
                "risk": evidence.plan.impact,
                "consent and approval for the data": None,
                "known failures": None,
            },
        }
    )


def data_sheet(facts: Facts) -> list[Item]:
    """Items of the data sheet."""
    films, tags = facts.films or {}, facts.evidence.tags
    return _items(
        {
            "Motivation": {"why and by whom the data was collected": None},
            "Composition": {
                "films": facts.split_counts(),
                "classes": facts.class_counts(),
                "unusable films left out": _text(films.get("quarantined")),
                "exact copies": _text(films.get("exact_copies")),
                "names of people": "none: patients are pseudonyms, files the hash of their content",
            },
            "Collection": {"sites, machines and years": None, "consent and ethical review": None},
            "Labelling": {
                "who read the films, and from what": None,
                "reviewers' decisions": _text(films.get("decisions")),
            },
            "Processing": {
                "preprocessing": f"square of {facts.evidence.spec.image_size_px} px, 8 bit grey",
                "splitting": "by patient; near-duplicates never cross",
            },
            "Uses": {
                "what it was used for": f"retraining {tags['run_key']}",
                "what it should not be used for": None,
            },
            "Distribution and maintenance": {
                "version": f"DVC {tags['data_md5']}",
                "licence and access": None,
                "who keeps it and how errors are reported": None,
            },
        }
    )


def plan_record(facts: Facts) -> list[Item]:
    """What the change plan asks and how this version meets it now."""
    from pipeline.promotion import actions as promotion

    plan, judged = facts.evidence.plan, promotion.gate(facts.evidence.version)
    gates = [*judged.gates, *judged.comparison]
    return _items(
        {
            "Modification": {"what may change": plan.modifications.description, "what changed and why": None},
            "Protocol": {"data": plan.protocol.data, "retraining": plan.protocol.retraining},
            "Evaluation": {
                **{gate.name: f"{gate.verdict}: {gate.reason}" for gate in gates},
                "verdict now": judged.verdict,
            },
            "Update": {
                "how": plan.protocol.update,
                "how it is watched": json.dumps(plan.protocol.monitoring.model_dump()),
                "what happened": "; ".join(f"{at} {what}" for at, what in facts.story),
            },
            "Impact": {"assessed beforehand": plan.impact, "seen since": None},
        }
    )


def _items(sections: dict[str, dict[str, str | None]]) -> list[Item]:
    return [
        Item(section, topic, answer) for section, lines in sections.items() for topic, answer in lines.items()
    ]


def _text(fact: Any) -> str | None:
    return None if fact is None else json.dumps(fact)
