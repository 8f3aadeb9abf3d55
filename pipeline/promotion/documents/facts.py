"""What the documents are filled from."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any

from openmed.files import read_json
from openmed.metrics.score_intervals import Interval
from pipeline import ledger
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.performance import limits_of_the_test
from pipeline.promotion.gates.subgroups import subgroups
from pipeline.registry.evidence import EXTERNAL_METRICS


@dataclass(frozen=True)
class Item:
    """One line of a document; `answer` is None where only people can give it."""

    section: str
    topic: str
    answer: str | None


@dataclass(frozen=True)
class Facts:
    """The evidence on a version, with what the record and the stages say of it."""

    evidence: Evidence
    story: list[tuple[str, str]]
    films: dict[str, Any] | None
    explained: dict[str, Any] | None

    @classmethod
    def of(cls, version: str) -> "Facts":
        """Reads them; raises as `Evidence.of`."""
        evidence = Evidence.of(version)
        summary, explained = map(evidence.files.find, ("validate/summary.json", "explain.json"))
        return cls(
            evidence,
            ledger.story(version),
            read_json(summary) if summary else None,
            read_json(explained) if explained else None,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the training of this architecture."""
        return self.evidence.params["train"][self.evidence.tags["architecture"]]

    def of_each(self, text_of: Callable[[Evidence], str | None]) -> str | None:
        """What is said of each finding, with its name where there are several; None where nothing is."""
        texts = [(each.spec.positive, text_of(each)) for each in self.evidence.each_finding()]
        if len(texts) == 1:
            return texts[0][1]
        return "; ".join(f"{name} {text}" for name, text in texts if text is not None) or None

    def measured(self, name: str) -> str | None:
        """A metric on the test films with its interval; None where it could not be computed."""
        return self.of_each(lambda evidence: _measured(getattr(evidence.measured.test, name)))

    def split_counts(self) -> str:
        """Films and patients of each split."""
        groups = self.evidence.split.groupby("split", sort=False)
        return "; ".join(
            f"{name}: {len(films)} films of {films['patient'].nunique()} patients" for name, films in groups
        )

    def class_counts(self) -> str:
        """Films of each class over all splits."""
        counts = self.evidence.split["label"].value_counts()
        names = self.evidence.spec.class_names
        return ", ".join(f"{name}: {int(counts.get(k, 0))}" for k, name in enumerate(names))

    def limits(self) -> str | None:
        """What the test could and could not have shown."""
        return self.of_each(lambda evidence: " ".join(limits_of_the_test(evidence)) or None)

    def test_films(self) -> int:
        """How many films judged it."""
        return int((self.evidence.split["split"] == "test").sum())

    def left_out(self) -> str | None:
        """How many films were left out as unusable, and how many are copies; None where it is not known."""
        if self.films is None or "quarantined" not in self.films:
            return None
        return (
            f"Unusable and left out: {self.films['quarantined']} films; "
            f"exact copies: {self.films.get('exact_copies', 'unknown')}."
        )

    def characteristics(self) -> str | None:
        """Sex and age of all films, not of each part; None where neither is known of any."""
        known, lines = self.evidence.films, []
        if known is None:
            return None
        for name in [name for name in ("sex", "age_band") if name in known]:
            counts = known.loc[known[name].fillna("") != "", name].value_counts()
            if len(counts):
                each = ", ".join(f"{value} {count}" for value, count in sorted(counts.items()))
                lines.append(f"{name.replace('_', ' ')}: {each}")
        if not lines:
            return None
        return f"films of all parts together, {self.class_counts()}; {'; '.join(lines)}"

    def elsewhere(self) -> str | None:
        """What was measured on each external set, over all its views; None where no set was scored."""
        stored = self.evidence.files.find(EXTERNAL_METRICS)
        sets = read_json(stored)["sets"] if stored else {}
        lines = []
        for name, content in sets.items():
            first = {self.evidence.spec.positive: content}
            for finding, own in (first | content.get("findings", {})).items():
                of_which = f", {finding}" if len(self.evidence.spec.findings) > 1 else ""
                whole = own["groups"][0]
                shares = [
                    f"{metric} {_share(whole[metric]['value'])}"
                    for metric in ("auc", "sensitivity", "specificity")
                    if whole[metric]["value"] is not None
                ]
                lines.append(f"{name}{of_which}, {own['films']} films: {', '.join(shares)}")
        return "; ".join(lines) or None

    def maps(self) -> str | None:
        """The method of the heat maps and whether they passed their checks."""
        if self.explained is None:
            return None
        method = self.explained["primary_method"]
        further = self.explained.get("findings", {})

        def trust(evidence: Evidence) -> str | None:
            name = evidence.spec.positive
            # A page of before may know the first finding alone.
            own = self.explained if name == self.evidence.spec.positive else further.get(name)
            if own is None:
                return None
            check = own["faithfulness"][method]
            trusted = "passed" if check["trusted"] else "did not pass"
            return f"{method.replace('_', ' ')}; the maps {trusted} their checks: {check['reason']}"

        return self.of_each(trust)


def _measured(metric: Interval) -> str | None:
    if isnan(metric.value):
        return None
    limits = "" if isnan(metric.low) else f" ({metric.low:.3f} to {metric.high:.3f})"
    return f"{metric.value:.3f}{limits}"


def group_lines(evidence: Evidence) -> str | None:
    """Sensitivity and specificity of groups of films; None where nothing is known of them."""
    lines = [
        f"{each.group}: " + ", ".join(f"{name} {_share(share.value)}" for name, share in each.shares.items())
        for each in subgroups(evidence)
    ]
    return "; ".join(lines) or None


def _share(value: float) -> str:
    return "unknown" if isnan(value) else f"{value:.2f}"
