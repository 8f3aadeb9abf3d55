"""The CLAIM checklist (Mongan, Moy & Kahn, Radiol Artif Intell 2020;2:e200029), in our own words.

Its 42 items are those of an article. What the evidence knows is filled in; the rest is the authors' to write.
"""

from pipeline.promotion.documents.facts import Facts, Item


def claim_checklist(facts: Facts) -> list[Item]:
    """The items in the order of the checklist, numbered as there."""
    evidence, tags = facts.evidence, facts.evidence.tags
    spec, params, settings = evidence.spec, evidence.params, facts.settings
    rules, classes = evidence.rules, len(spec.class_names)
    answers: dict[int, str | None] = {
        1: f"{tags['architecture']} network, by its title",
        6: f"find {' and '.join(spec.findings)} on chest films",
        9: "films left out as unusable or under two labels are listed in the evidence",
        10: f"SHA-256 and sizes of all films; DVC {tags['data_md5']}",
        12: "patients are pseudonyms from a site secret; files keep pixels and a few facts",
        13: "a film whose label is unknown is used for nothing",
        20: facts.split_counts(),
        21: "whole patients; near-duplicates stay together",
        22: f"{tags['architecture']} ({spec.timm_name}), {spec.image_size_px} px, {classes} classes",
        23: "PyTorch and timm; versions in the report",
        24: f"{spec.weights.get('kind', 'unknown')} weights",
        25: f"{settings.get('augment')}; rows balanced: {params.get('resample', {}).get('strategy')}",
        26: "the epoch by AUC, the architecture by its worst simulated site, both on validation films",
        27: None if "train" not in params else "one network a version; means over several are not promoted",
        28: f"AUC, sensitivity, specificity, each with a {rules.confidence:.0%} interval",
        29: "closed forms that know of patients: Wilson, DeLong on log-odds, Tango, with design effects",
        30: "; ".join(f"{gate.name}: {gate.verdict}" for gate in evidence.gates),
        31: facts.maps(),
        32: f"{facts.limits() or ''} Films from elsewhere: {facts.elsewhere()}.".strip(),
        33: facts.split_counts(),
        34: facts.class_counts(),
        35: facts.measured("auc"),
        36: f"sensitivity {facts.measured('sensitivity')}, specificity {facts.measured('specificity')}",
        37: "the films it gets wrong stand in the report and on the review page",
        41: f"git {tags['revision']}, `openmed reproduce {evidence.version}`",
    }
    return [
        Item(section, f"{number}. {topic}", answers.get(number))
        for section, topics in _TOPICS.items()
        for number, topic in topics.items()
    ]


_TOPICS = {
    "Title and abstract": {1: "the method of artificial intelligence is named", 2: "structured summary"},
    "Introduction": {3: "clinical background and role", 4: "aims and hypotheses"},
    "Study design": {5: "prospective or retrospective", 6: "goal of the study"},
    "Data": {
        7: "sources of the data",
        8: "who and what was eligible",
        9: "preprocessing and what was left out",
        10: "selection of subsets",
        11: "definitions of the data elements",
        12: "de-identification",
        13: "missing data",
    },
    "Reference standard": {
        14: "definition of the reference standard",
        15: "why it was chosen",
        16: "who annotated, with what qualification",
        17: "tools for annotating",
        18: "agreement of the annotators",
    },
    "Partitions": {
        19: "intended sample size and its reason",
        20: "how the data was divided",
        21: "level at which the parts are disjoint",
    },
    "Model": {22: "description", 23: "software", 24: "how parameters were initialised"},
    "Training": {25: "training in detail", 26: "how the final model was chosen", 27: "ensembling"},
    "Evaluation": {
        28: "measures of performance",
        29: "statistical uncertainty",
        30: "robustness and requirements",
        31: "explanations",
        32: "what the test could show; validation on external data",
    },
    "Results: data": {33: "flow of patients and films", 34: "who and what was in each part"},
    "Results: model": {
        35: "performance on all parts",
        36: "diagnostic accuracy and its precision",
        37: "analysis of failures",
    },
    "Discussion": {38: "limits of the study", 39: "meaning for practice"},
    "Other": {
        40: "registration number",
        41: "where code, model and protocol are",
        42: "funding and its role",
    },
}
