"""How faithful the shown method is for the model, in plain words."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["faithful", "partly", "not", "not measured"]
TITLES: dict[Level, str] = {
    "faithful": "These explanations can be trusted for this model.",
    "partly": "These explanations can be trusted in part.",
    "not": "Do not rely on these explanations: they are not faithful for this model.",
    "not measured": "It has not been measured how faithful these explanations are for this model.",
}


@dataclass(frozen=True)
class Trust:
    """How far the page can be trusted."""

    level: Level
    """The verdict."""
    title: str
    """The verdict as a sentence."""
    sentences: tuple[str, ...]
    """The reasons."""
    headings: tuple[str, ...] = ()
    """Columns of the table."""
    rows: tuple[tuple[str, ...], ...] = ()
    """Measured values by order of events."""
    terms: tuple[tuple[str, str], ...] = ()
    """The meaning of the measures."""


def not_measured() -> Trust:
    """Return what a page says without a measurement."""
    return Trust(
        "not measured",
        TITLES["not measured"],
        (
            "Take them as a hint, not as the reason. An explanation is faithful if the answer changes when the events that it "
            "names are removed.",
        ),
    )
