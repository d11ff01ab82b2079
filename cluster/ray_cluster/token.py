"""Ray's token authentication, decided before Ray is imported: its core reads the environment once, at import."""

import os
from collections.abc import MutableMapping
from pathlib import Path

GET_TOKEN = (
    "copy ~/.ray/auth_token from the head's machine to this one, or name a copy of it in the environment variable "
    "RAY_AUTH_TOKEN_PATH"
)


def send_token_if_present(environment: MutableMapping[str, str] = os.environ, home: Path | None = None) -> None:
    """Set this process to token authentication if this user has a token and no other choice was made.

    To be called before Ray is imported. New clusters ask for the token; a cluster that does not ask ignores it.
    """
    if "RAY_AUTH_MODE" in environment:
        return
    default = (home or Path.home()) / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment or default.is_file():
        environment["RAY_AUTH_MODE"] = "token"
