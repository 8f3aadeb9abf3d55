"""What was done with answers: a journal that is only added to, and what it says of a film and of a model.

`journal` keeps lines in a chain of hashes, `answer_log` says what stands in a line. Films are known by the
SHA-256 of their file; no name, path or patient is in it.
"""
