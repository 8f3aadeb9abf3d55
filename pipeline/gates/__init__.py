"""The gates of a promotion: what a version must show beyond the floors of its own evaluation.

Everything is read from the evidence that was registered with the version; nothing is taken on the word of a
task. A gate never raises its own exception for a bad model: it says FAIL, INSUFFICIENT EVIDENCE or OUTSIDE
PLAN, with a sentence for a reviewer.
"""

from pipeline.gates.comparison import Comparison, compare_all
from pipeline.gates.evidence import Evidence
from pipeline.gates.external import external_gates
from pipeline.gates.performance import floor_gates, limits_of_the_test, performance_gates, subgroups
from pipeline.gates.soundness import soundness_gates, with_look
from pipeline.gates.verdict import judge_version, overall

__all__ = [
    "Comparison",
    "Evidence",
    "compare_all",
    "external_gates",
    "floor_gates",
    "judge_version",
    "limits_of_the_test",
    "overall",
    "performance_gates",
    "soundness_gates",
    "subgroups",
    "with_look",
]
