"""The gates of a promotion: what a version must show beyond the floors of its own evaluation.

Everything is read from the evidence that was registered with the version; nothing is taken on the word of a
task. A gate never raises its own exception for a bad model: it says FAIL, INSUFFICIENT EVIDENCE or OUTSIDE
PLAN, with a sentence for a reviewer.
"""
