"""Choice of the methods of a request. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.errors import UserError
from trainer.explanation.command.request import ALL, METHODS

if TYPE_CHECKING:
    from trainer.explanation.faithfulness.results import Faithfulness

DEFAULT = "occlusion"
_DECIDES = "del"  # the metric that orders methods: what remains of the probability when the events of an explanation are removed


@dataclass(frozen=True)
class Selection:
    """The methods of a request."""

    methods: tuple[str, ...]
    """Names, the one that the page shows first."""
    why: str
    """Why this one is first, in a sentence."""


def select(method: str | None, measured: "Faithfulness | None" = None) -> Selection:
    """Return the methods to compute. Raises UserError for a name that does not exist.

    Args:
        method: name of a method, or "all"; None: the recommended one.
        measured: the last measurement of this model; None: there is none.
    """
    if method not in (None, ALL, *METHODS):
        raise UserError(f"--method {method}: there is no such method; choose all, or one of {', '.join(METHODS)}")
    first, why = _recommended(measured)
    if method is None:
        return Selection((first,), why)
    if method == ALL:
        return Selection((first, *(name for name in METHODS if name != first)), why)
    return Selection((method,), "It was chosen with --method.")


def _recommended(measured: "Faithfulness | None") -> tuple[str, str]:
    """Return the most faithful measured method; without a measurement of several methods, the default one."""
    names = [] if measured is None else [name for name in METHODS if name in measured.orders]
    if measured is None or len(names) < len(METHODS):
        return DEFAULT, "It is the default method: it asks the model itself what happens without an event."
    best = min(names, key=lambda name: measured.value(name, _DECIDES).value)
    return (
        best,
        f"It was the most faithful of {len(names)} methods for this model, measured on {measured.num_users:,} users.",
    )
