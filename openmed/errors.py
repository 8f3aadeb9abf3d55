"""The errors a user can meet, each with the exit code of the command line.

Every message is one clear sentence that names the file or value and the remedy. It never
carries patient data.
"""


class OpenMedError(Exception):
    """Base of all errors that are shown to a user as one sentence."""

    exit_code = 1


class BadInput(OpenMedError):
    """A file, setting or argument that cannot be used as given."""

    exit_code = 2


class IntegrityError(OpenMedError):
    """Content that is not what its recorded hash says."""

    exit_code = 3


class ResourceError(OpenMedError):
    """Disk, memory or a needed service is not there."""

    exit_code = 4
