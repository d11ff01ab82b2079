"""Credentials inside of URIs: found, so that they are refused before they are written anywhere or shown to anybody.

A path of a config is copied into config.json, into pages and into messages, where many people read it.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from trainer.settings import plain_values

_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)[^?#]*(\?(?P<query>[^#]*))?", re.IGNORECASE)
# What follows a colon is a port; anything else is the password of a user.
_PASSWORD = re.compile(r":(?!\d*$)")
_SECRET_PARAMETER = re.compile(
    r"secret|password|passwd|token|credential|signature|^sig$|(^|_)key(_|$|id)|^accesskey", re.IGNORECASE
)

_REMEDIES = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with temporary ones AWS_SESSION_TOKEN too), or ~/.aws/credentials",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    "gcs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    "abfs": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
    "abfss": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
}
_OTHER = "give them by the environment variables of that filesystem"


def refusal_of(text: str) -> str | None:
    """Return why `text` may not be a setting, and what to do instead, without the secret; None if it holds no credentials."""
    uri = _URI.match(text.strip())
    if uri is None:
        return None
    scheme, authority = uri["scheme"].lower(), re.sub(r"\[[^\]]*\]", "", uri["authority"])
    user, at, host = authority.rpartition("@")
    if (at and ":" in user) or (at and scheme == "s3" and user) or _PASSWORD.search(host):
        what = f"credentials before the name of the {'bucket' if scheme in ('s3', 'gs', 'gcs') else 'host'}"
    else:
        names = [name for name, _ in parse_qsl(uri["query"] or "", keep_blank_values=True)]
        secret = [name for name in names if _SECRET_PARAMETER.search(name)]
        if not secret:
            return None
        what = f"credentials in the parameter{'s' * (len(secret) > 1)} {', '.join(secret)}"
    return (
        f"this {scheme}:// URI holds {what}, and settings are written into config.json, reports and messages; take them out, and "
        f"{_REMEDIES.get(scheme, _OTHER)} on every machine instead"
    )


def refusals_in(values: Any) -> Iterator[str]:
    """Yield "setting: why" for every text in nested plain values that holds credentials."""
    for place, value in plain_values(values):
        if isinstance(value, str) and (why := refusal_of(value)) is not None:
            yield f"{place}: {why}"
