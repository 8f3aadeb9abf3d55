"""The host that a task runs on: its checkout, its state folder, and what is tried again elsewhere.

Hosts have no folder in common: a checkout (PROJECT), a state folder (HOME) and the site's secret are on each.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from openmed.errors import OpenMedError, ResourceError
from pipeline.settings.variables import variables
from pipeline.tools.git import disk_is_full

_VARIABLES = variables()
PROJECT = (_VARIABLES.project or Path(__file__).resolve().parents[1]).resolve()
HOME = (_VARIABLES.home or PROJECT / ".openmed").resolve()
TIMEZONE = _VARIABLES.timezone
OUTAGE_SPAN = timedelta(minutes=_VARIABLES.outage_minutes)
DISK_FULL = (
    "the disk of this host is full: make room; the task is tried again, on another host where one is idle"
)


class Outage(AirflowException):
    """A server that does not answer, or a disk that is full: nothing is damaged, and it may pass."""


class SpreadTries(RetryPolicy):
    """Spreads the tries that are left after an outage over OPENMED_OUTAGE_MINUTES: soon, then at the end."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Any = None
    ) -> RetryDecision:
        """Leaves anything but an outage to the delays of the task."""
        if not (isinstance(exception, Outage) or _is_full(exception)):
            return RetryDecision.default()
        last = max_tries - try_number < 1
        return RetryDecision.retry(OUTAGE_SPAN * (5 if last else 1) / 6, str(exception))


def _is_full(error: BaseException) -> bool:
    """Tells whether an error says that the disk or its quota is full."""
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or disk_is_full(str(error))
    )


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns the project's errors into Airflow's: an outage is tried again, what is damaged is not."""
    try:
        yield
    except ResourceError as error:
        raise Outage(str(error)) from None
    except OpenMedError as error:
        if disk_is_full(str(error)):
            raise Outage(DISK_FULL) from None
        raise AirflowFailException(str(error)) from None
    except OSError as error:
        if not _is_full(error):
            raise
        raise Outage(DISK_FULL) from None


def enter_project() -> None:
    """Tells code that runs inside this task where the project and its state are."""
    os.environ["OPENMED_PROJECT"] = str(PROJECT)
    os.environ["OPENMED_HOME"] = str(HOME)
