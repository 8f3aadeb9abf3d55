"""The gates of a promotion: what a version must show beyond the floors of its own evaluation.

Everything is read from the evidence that was registered with the version; nothing is taken on the word of a
task. A gate never raises its own exception for a bad model: it says FAIL, INSUFFICIENT EVIDENCE or OUTSIDE
PLAN, with a sentence for a reviewer.
"""

from pipeline.promotion.gates.comparison import Comparison
from pipeline.promotion.gates.evidence import Evidence
from pipeline.promotion.gates.performance import limits_of_the_test, subgroups
from pipeline.promotion.gates.verdict import judge_version, overall

__all__ = ["Comparison", "Evidence", "judge_version", "limits_of_the_test", "overall", "subgroups"]
