"""Choice of the methods of a request. Imports no torch."""

from dataclasses import dataclass

from trainer.errors import UserError
from trainer.explanation.command.request import ALL

METHODS = ("occlusion",)
DEFAULT = "occlusion"


@dataclass(frozen=True)
class Selection:
    """The methods of a request."""

    methods: tuple[str, ...]
    """Names, the one that the page shows first."""
    why: str
    """Why this one is first, in a sentence."""


def select(method: str | None) -> Selection:
    """Return the methods to compute. Raises UserError for a name that does not exist.

    method: name of a method, or "all"; None: the recommended one.
    """
    default = "It needs no assumption about the model: it is the fall of the score when the event is removed."
    if method is None:
        return Selection((DEFAULT,), default)
    if method == ALL:
        return Selection((DEFAULT, *(name for name in METHODS if name != DEFAULT)), default)
    if method not in METHODS:
        raise UserError(f"--method {method}: there is no such method; choose all, or one of {', '.join(METHODS)}")
    return Selection((method,), "It was chosen with --method.")
