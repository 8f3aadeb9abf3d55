"""Messages to people outside of Airflow and MLflow: one sentence, posted to a chat's incoming webhook."""

import http.client
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
        BadInput: The address is no address, or neither https nor on this machine.
        ResourceError: It does not answer, refuses the message or redirects.
    """
    url = os.environ.get(_VARIABLE)
    if not url:
        return False
    _check_address(url)
    body, kind = json.dumps({"text": text}).encode(), {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, data=body, headers=kind, method="POST")
        with _OPENER.open(request, timeout=_TIMEOUT_S):
            return True
    # An odd address ends in a ValueError that repeats it.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "code", None) or type(getattr(error, "reason", error)).__name__
        raise ResourceError(f"{_VARIABLE} did not take the message ({reason}): check the webhook") from None


def _check_address(url: str) -> None:
    """Refuses an address without repeating it: it is a secret."""
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        safe = whole = False
    if not (safe and whole and url.isascii() and url.isprintable() and " " not in url):
        raise BadInput(f"{_VARIABLE} must be an https address, without spaces")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the message to where nobody sent it, or drop it: it counts as a refusal."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
