"""The CLAIM checklist in its update of 2024, in our own words.

Tejani AS et al. Radiol Artif Intell 2024;6(4):e240300. Its 44 items are those of an article. What the
evidence knows is filled in; the rest is the authors' to write.
"""

from pipeline.promotion.documents.facts import Facts, Item


def claim_checklist(facts: Facts) -> list[Item]:
    """Returns the items in the order of the checklist, numbered as there."""
    answers = {**_methods(facts), **_results(facts)}
    return [
        Item(section, f"{number}. {topic}", answers.get(number))
        for section, topics in _TOPICS.items()
        for number, topic in topics.items()
    ]


def _methods(facts: Facts) -> dict[int, str | None]:
    evidence, tags = facts.evidence, facts.evidence.tags
    spec, params, settings = evidence.spec, evidence.params, facts.settings
    trained = f"rows balanced: {params.get('resample', {}).get('strategy')}"
    return {
        1: f"deep learning, a {tags['architecture']} network",
        6: f"find {' and '.join(spec.findings)} on chest films",
        9: f"one grey channel of 8 bits, the whole film resized to {spec.image_size_px} px",
        10: f"whole films, no part cut out; SHA-256 of every film in the evidence, DVC {tags['data_md5']}",
        11: "patients are pseudonyms from a site secret; files keep pixels and a few facts",
        12: "a film whose label is unknown is used for nothing; nothing is imputed",
        19: f"by a seed and stratified, test films as declared: {facts.split_counts()}; {trained}",
        20: "patients; near-duplicates stay together",
        22: f"{tags['architecture']} ({spec.timm_name}), in: {spec.image_size_px} px, "
        f"out: probabilities of {', '.join(spec.class_names)}",
        23: "PyTorch and timm; versions in the report",
        24: f"{spec.weights.get('kind', 'unknown')} weights",
        25: f"{settings.get('augment')}; {trained}; all settings in params.yaml of the evidence",
        26: "the epoch by AUC, the architecture by its worst simulated site, both on validation films",
        27: None if "train" not in params else "one network a version; means over several are not promoted",
        28: f"AUC, sensitivity, specificity, each with a {evidence.rules.confidence:.0%} interval",
        29: "closed forms that know of patients: Wilson, DeLong on log-odds, Tango, with design effects",
        30: "; ".join(f"{gate.name}: {gate.verdict}" for gate in evidence.gates),
        31: facts.maps(),
        32: _joined(f"on {facts.test_films()} test films that taught nothing.", facts.limits()),
        33: facts.elsewhere(),
    }


def _results(facts: Facts) -> dict[int, str | None]:
    tags = facts.evidence.tags
    sensitivity, specificity = facts.measured("sensitivity"), facts.measured("specificity")
    return {
        35: _joined(f"{facts.split_counts()}.", facts.left_out()),
        36: facts.characteristics(),
        37: facts.measured("auc") and f"AUC on the test films {facts.measured('auc')}",
        38: sensitivity and f"sensitivity {sensitivity}, specificity {specificity}",
        39: "the films it gets wrong stand in the report and on the review page",
        42: f"dvc.yaml, params.yaml and the change plan at git {tags['revision']}; "
        f"`openmed reproduce {facts.evidence.version}`",
    }


def _joined(first: str, second: str | None) -> str:
    return first if second is None else f"{first} {second}"


_TOPICS = {
    "Title and abstract": {1: "the method of artificial intelligence is named", 2: "structured summary"},
    "Introduction": {3: "background, intended use and clinical role", 4: "aims, objectives and hypotheses"},
    "Methods: study design": {5: "prospective or retrospective", 6: "goal of the study"},
    "Methods: data": {
        7: "sources of the data",
        8: "who and what was eligible",
        9: "preprocessing",
        10: "selection of subsets",
        11: "de-identification",
        12: "missing data",
        13: "how the images were acquired",
    },
    "Methods: reference standard": {
        14: "how the reference standard was obtained",
        15: "why it was chosen",
        16: "who annotated, with what qualification",
        17: "how the test films were annotated",
        18: "agreement within and between annotators",
    },
    "Methods: partitions": {
        19: "how the data was assigned to the parts",
        20: "level at which the parts are disjoint",
    },
    "Methods: test data": {21: "intended sample size and its reason"},
    "Methods: model": {22: "description", 23: "software", 24: "how parameters were initialised"},
    "Methods: training": {
        25: "training in detail",
        26: "how the final model was chosen",
        27: "ensembling",
    },
    "Methods: evaluation": {
        28: "measures of performance",
        29: "statistical significance and uncertainty",
        30: "robustness and requirements",
        31: "explanations",
        32: "testing on internal data",
        33: "testing on external data, or why there is none",
        34: "registration of a clinical trial",
    },
    "Results: data": {
        35: "patients and films that were included and left out",
        36: "demographic and clinical characteristics of the parts",
    },
    "Results: model": {
        37: "performance on all parts",
        38: "diagnostic performance and its precision",
        39: "analysis of failures",
    },
    "Discussion": {40: "limits of the study", 41: "meaning for practice"},
    "Other": {
        42: "protocol and technical details",
        43: "availability of software, model and data",
        44: "funding and its role",
    },
}
