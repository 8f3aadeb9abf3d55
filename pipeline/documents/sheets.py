"""Model card (Mitchell et al. 2019), data sheet (Gebru et al. 2021) and the record against the change plan."""

import json

from pipeline.documents.facts import Facts, Item


def model_card(facts: Facts) -> list[Item]:
    """Items of the model card."""
    evidence, tags, settings = facts.evidence, facts.evidence.tags, facts.settings
    spec, plan = evidence.spec, evidence.plan
    start = spec.weights.get("kind", "unknown")
    return [
        Item(
            "Model",
            "architecture",
            f"{tags['architecture']} ({spec.timm_name}), input {spec.image_size_px} px",
        ),
        Item("Model", "version and weights", f"SHA-256 {tags['weights_sha256']}"),
        Item("Model", "code", f"git {tags['revision']}"),
        Item("Model", "started from", f"{start} weights"),
        Item("Model", "training", json.dumps({key: settings.get(key) for key in ("head", "finetune")})),
        Item("Model", "contact", None),
        Item("Intended use", "purpose", "Decision support for research, not a diagnosis."),
        Item("Intended use", "classes", f"{', '.join(spec.class_names)}; the finding is {spec.positive}"),
        Item("Intended use", "users and setting", None),
        Item("Intended use", "uses it is not made for", None),
        Item("Factors", "groups of films", facts.group_lines()),
        Item("Factors", "groups of patients that matter and are not known", None),
        Item("Metrics", "AUC", facts.measured("auc")),
        Item("Metrics", "sensitivity", facts.measured("sensitivity")),
        Item("Metrics", "specificity", facts.measured("specificity")),
        Item("Metrics", "threshold", f"{spec.threshold:.4f}, chosen on calibration films and frozen"),
        Item(
            "Metrics",
            "probabilities",
            f"calibrated by {spec.calibration.method}" if spec.calibration else None,
        ),
        Item("Data", "films", facts.split_counts()),
        Item(
            "Data",
            "balance",
            f"{evidence.params['resample']['strategy']}sampling of training rows"
            if "resample" in evidence.params
            else None,
        ),
        Item("Analysis", "verdict", tags["verdict"]),
        Item("Analysis", "what the test could not have shown", facts.limits()),
        Item("Analysis", "heat maps", facts.maps()),
        Item("Ethics", "risk", plan.impact),
        Item("Ethics", "consent and approval for the data", None),
        Item("Caveats", "known failures", None),
    ]


def data_sheet(facts: Facts) -> list[Item]:
    """Items of the data sheet."""
    films, tags = facts.films, facts.evidence.tags
    return [
        Item("Motivation", "why and by whom the data was collected", None),
        Item("Composition", "films", facts.split_counts()),
        Item("Composition", "classes", facts.class_counts()),
        Item(
            "Composition", "unusable films left out", None if films is None else str(films.get("quarantined"))
        ),
        Item("Composition", "exact copies", None if films is None else str(films.get("exact_copies"))),
        Item(
            "Composition",
            "people are identifiable",
            "No: patients are numbers, files go by the hash of their content.",
        ),
        Item("Collection", "sites, machines and years", None),
        Item("Collection", "consent and ethical review", None),
        Item("Labelling", "who read the films, and from what", None),
        Item(
            "Labelling", "reviewers' decisions", None if films is None else json.dumps(films.get("decisions"))
        ),
        Item("Processing", "preprocessing", f"square of {facts.evidence.spec.image_size_px} px, 8 bit grey"),
        Item("Processing", "splitting", "by patient; near-duplicates never cross"),
        Item(
            "Uses", "what it was used for", f"version {facts.evidence.version}, retraining {tags['run_key']}"
        ),
        Item("Uses", "what it should not be used for", None),
        Item("Distribution", "licence and access", None),
        Item("Maintenance", "version", f"DVC {tags['data_md5']}"),
        Item("Maintenance", "who keeps it and how errors are reported", None),
    ]


def plan_record(facts: Facts) -> list[Item]:
    """What the change plan asked and how this version met it."""
    from pipeline import promotion

    plan, judged = facts.evidence.plan, promotion.gate(facts.evidence.version)
    gates = [*judged["gates"], *judged["comparison"]]
    return [
        Item("Modification", "what may change", plan.modifications.description),
        Item("Modification", "what changed and why", None),
        Item("Protocol", "data", plan.protocol.data),
        Item("Protocol", "retraining", plan.protocol.retraining),
        *(Item("Evaluation", gate["name"], f"{gate['verdict']}: {gate['reason']}") for gate in gates),
        Item("Evaluation", "verdict now", judged["verdict"]),
        Item("Update", "how", plan.protocol.update),
        *(Item("Update", at, what) for at, what in facts.story),
        Item("Impact", "assessed beforehand", plan.impact),
        Item("Impact", "seen since", None),
    ]
