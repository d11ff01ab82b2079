"""Detection of credentials inside URIs, which are refused before they are written or shown anywhere.

A path of a config is copied into config.json, into pages and into messages, which many people read.
"""

import re
from urllib.parse import parse_qsl

_URI = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)[^?#]*(\?(?P<query>[^#]*))?", re.IGNORECASE)
# Digits after a colon are a port. Anything else is a password.
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
    """Return why `text` is refused as a setting and what to do instead, without the secret. None if it has no credentials."""
    uri = _URI.match(text.strip())
    if uri is None:
        return None
    scheme = uri["scheme"].lower()
    authority = re.sub(r"\[[^\]]*\]", "", uri["authority"])
    user, at, host = authority.rpartition("@")
    if (at and ":" in user) or (at and scheme == "s3" and user) or _PASSWORD.search(host):
        location = f"credentials before the name of the {'bucket' if scheme in ('s3', 'gs', 'gcs') else 'host'}"
    else:
        names = [name for name, _ in parse_qsl(uri["query"] or "", keep_blank_values=True)]
        secret = [name for name in names if _SECRET_PARAMETER.search(name)]
        if not secret:
            return None
        location = f"credentials in the parameter{'s' * (len(secret) > 1)} {', '.join(secret)}"
    return (
        f"this {scheme}:// URI holds {location}, and settings are written into config.json, reports and messages; take them out, "
        f"and {_REMEDIES.get(scheme, _OTHER)} on every machine instead"
    )
