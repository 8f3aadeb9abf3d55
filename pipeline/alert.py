"""Messages to people outside of Airflow and MLflow: one sentence, posted to a chat's incoming webhook."""

import json
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from openmed.errors import BadInput, ResourceError

_VARIABLE = "OPENMED_ALERT_URL"
_TIMEOUT_S = 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def send_alert(text: str) -> bool:
    """Posts {"text": ...} to OPENMED_ALERT_URL, as Slack, Teams and Mattermost take it.

    Returns:
        Whether there was somewhere to send it.

    Raises:
        BadInput: The address is neither https nor on this machine.
        ResourceError: It does not answer, or refuses the message.
    """
    url = os.environ.get(_VARIABLE)
    if not url:
        return False
    parts = urlsplit(url)
    # The address itself is a secret: it is not repeated.
    if parts.scheme != "https" and (parts.scheme, parts.hostname) not in {
        ("http", host) for host in _LOOPBACK
    }:
        raise BadInput(f"{_VARIABLE} must be an https address")
    body, kind = json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, data=body, headers=kind, method="POST")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return True
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "code", None) or type(getattr(error, "reason", error)).__name__
        raise ResourceError(f"{_VARIABLE} did not take the message ({reason}): check the webhook") from None
