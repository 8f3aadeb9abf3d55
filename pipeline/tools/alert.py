"""Messages to people outside of Airflow and MLflow: one sentence, posted to a chat's incoming webhook."""

import logging
import ssl
from urllib.parse import urlsplit

import httpx

from openmed.errors import BadInput, ResourceError
from pipeline.settings.variables import variables

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# It would log the address, which is a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)


def send_alert(text: str) -> bool:
    """Posts {"text": ...} to OPENMED_ALERT_URL, as Slack, Teams and Mattermost take it.

    Returns:
        Whether there was somewhere to send it.

    Raises:
        BadInput: The address is no address, or neither https nor on this machine.
        ResourceError: It does not answer, refuses the message or redirects, which would carry the message
            to where nobody sent it.
    """
    secret = variables().alert_url
    if secret is None:
        return False
    url = secret.get_secret_value()
    _check_address(url)
    try:
        answer = httpx.post(url, json={"text": text}, timeout=20, verify=ssl.create_default_context())
        reason = "" if answer.is_success else str(answer.status_code)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = type(error).__name__
    if reason:
        raise ResourceError(f"OPENMED_ALERT_URL did not take the message ({reason}): check the webhook")
    return True


def _check_address(url: str) -> None:
    """Refuses an address without repeating it: it is a secret."""
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        safe = whole = False
    if not (safe and whole and url.isascii() and url.isprintable() and " " not in url):
        raise BadInput("OPENMED_ALERT_URL must be an https address, without spaces")
