"""What is known of a version, read from the registry by hash."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmed.errors import BadInput
from openmed.files import read_json, read_table, sha256_file
from openmed.gates.gate import Gate
from pipeline import registry
from pipeline.evaluation.judgement import scored_for
from pipeline.evaluation.metrics_file import FindingMetrics, Metrics
from pipeline.evaluation.rules import Rules
from pipeline.registry.evidence import EXTERNAL_PREDICTIONS
from pipeline.settings.plan import PLAN_FILE, ChangePlan, load_plan
from pipeline.settings.yaml_file import read_mapping

if TYPE_CHECKING:
    import pandas as pd

    from openmed.fitted.spec import ModelSpec


@dataclass(frozen=True)
class Evidence:
    """The evidence on one version.

    Attributes:
        files: What was logged with it.
        tags: What its registration says.
        spec: Description of the model, asked for one finding; see `of_finding`.
        params: Content of its params.yaml.
        plan_file, plan_sha256: The change plan it came with, and its hash.
        metrics: What its evaluation measured, of all findings.
        gates: The gates of its evaluation: of all findings, or of the one asked for.
        predictions: One row a film of validation, calibration and test; patients by number.
        split: One row a film of any split: id, patient, label, split.
        films: What is known of each film (sha256, width, height, perhaps view, sex, manufacturer), None where
            no profile was stored.
        external: One row a film of any external set: set, id, sha256, patient (by number), label,
            second_label, view, sex, age_band, source, score and logits; empty where there were no sets.
        look: How many versions its test patients have judged, this one included.
    """

    version: str
    files: registry.Files
    tags: Mapping[str, str]
    spec: "ModelSpec"
    params: dict[str, Any]
    plan_file: Path
    plan_sha256: str
    metrics: Metrics
    gates: list[Gate]
    predictions: "pd.DataFrame"
    split: "pd.DataFrame"
    films: "pd.DataFrame | None"
    external: "pd.DataFrame"
    look: int = 1

    @classmethod
    def of(cls, version: str) -> "Evidence":
        """Reads it.

        Raises:
            BadInput: There is no such version, or a part was never registered with it.
            IntegrityError: A part is not what was registered.
        """
        import pandas as pd

        files, spec = registry.logged_files(version), registry.check_model(version)
        plan = files.get(PLAN_FILE)
        profile = files.find("data_profile.parquet")
        external = files.find(EXTERNAL_PREDICTIONS)
        params = read_mapping(files.get("params.yaml"))
        gates = read_json(files.get("gates.json"))["gates"]
        return cls(
            version=version,
            files=files,
            tags=files.tags,
            spec=spec,
            params=params,
            plan_file=plan,
            plan_sha256=sha256_file(plan),
            metrics=Metrics.read(files.get("metrics.json")),
            gates=[Gate.from_json(gate) for gate in gates],
            predictions=read_table(files.get("predictions.parquet")),
            split=read_table(files.get("split/split.parquet")),
            films=None if profile is None else read_table(profile),
            # Versions of before there were external sets have no such file.
            external=pd.DataFrame(columns=["set", "id", "sha256", "label", "view"])
            if external is None
            else read_table(external),
        )

    @cached_property
    def plan(self) -> ChangePlan:
        """What it asks of the finding; BadInput where a plan of before lacks what is asked today."""
        return load_plan(self.plan_file).of_finding(self.spec.positive)

    def each_finding(self) -> "Iterator[Evidence]":
        """Gives the same evidence asked for each finding, the first first."""
        yield from map(self.of_finding, self.spec.findings)

    def of_finding(self, name: str) -> "Evidence":
        """Returns the evidence asked for one of its findings: scores, threshold, gates, limits."""
        return replace(
            self,
            spec=self.spec.of_finding(name),
            gates=[gate for gate in self.gates if gate.finding in (None, name)],
            predictions=scored_for(self.predictions, self.spec, name),
            external=scored_for(self.external, self.spec, name),
        )

    @property
    def measured(self) -> FindingMetrics:
        """What its evaluation measured of the finding."""
        return self.metrics.findings[self.spec.positive]

    @property
    def test(self) -> "pd.DataFrame":
        """The predictions of the test films."""
        return self.predictions[self.predictions["split"] == "test"].reset_index(drop=True)

    @property
    def rules(self) -> Rules:
        """The settings of its evaluation, for the finding."""
        return Rules.of(self.params, f"params.yaml of version {self.version}", self.spec.positive)

    @property
    def rules_of_look(self) -> Rules:
        """The same with the confidence that is left for this look; see `confidence_of_look`."""
        return replace(self.rules, confidence=confidence_of_look(self.rules.confidence, self.look))

    @property
    def error_share(self) -> float:
        """How often a gate that fails by chance may, so that those of all findings do no oftener."""
        return (1 - self.rules.confidence) / len(self.spec.findings)

    @property
    def margins(self) -> dict[str, float]:
        """The accepted losses against the champion."""
        try:
            return {name: float(loss) for name, loss in self.params["promotion"]["margins"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"params.yaml of version {self.version} lacks settings of the comparison: {error}"
            ) from None


def confidence_of_look(confidence: float, look: int) -> float:
    """Returns how sure the two-sided limits of a look must be, so that all looks together err seldom.

    A model exactly at a floor passes a single look in (1 - confidence) / 2 of all cases. Look k may spend
    (1 - confidence) / (k (k + 1)): half of 1 - confidence at the first, and 1 - confidence over any number of
    them. Spending errors over looks: Lan and DeMets, Biometrika 1983;70:659-663.
    """
    return 1 - 2 * (1 - confidence) / (look * (look + 1))
