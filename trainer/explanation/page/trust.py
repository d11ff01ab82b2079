"""Faithfulness of the shown method for the model, in plain words."""

from dataclasses import dataclass
from typing import Literal

from trainer.explanation.faithfulness.levels import SHARES
from trainer.explanation.faithfulness.metrics import metric_of
from trainer.explanation.faithfulness.orders import REFERENCES
from trainer.explanation.faithfulness.results import Faithfulness
from trainer.explanation.faithfulness.words import JUDGED, verdict

FEW_USERS = 100  # fewer can show only large differences
Level = Literal["faithful", "partly", "not", "not shown", "not measured"]
TITLES: dict[Level, str] = {
    "faithful": "These explanations can be trusted for this model.",
    "partly": "These explanations can be trusted in part.",
    "not": "Do not rely on these explanations: they are not faithful for this model.",
    "not shown": "It could not be shown that these explanations are faithful for this model.",
    "not measured": "It has not been measured how faithful these explanations are for this model.",
}


@dataclass(frozen=True)
class Trust:
    """Verdict of the page on its own explanations."""

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


def trust_of(measured: Faithfulness, method: str) -> Trust:
    """Return how far a method can be trusted, by its measurement.

    Args:
        measured: the measurement.
        method: the method that the page shows first.
    """
    reached = verdict(measured, method)
    level: Level = reached.level
    if level == "not" and not _is_worse(measured, method):
        level = "not shown"
    sentences = [
        f"Measured on {measured.num_users:,} users with {measured.median_events:.0f} events (median).",
        *reached.sentences,
    ]
    if measured.num_users < FEW_USERS:
        sentences.append(
            f"{measured.num_users:,} users are few: only large differences can be shown. Explain more users, as with --sample 500."
        )
    metrics = [metric for metric in JUDGED if metric in measured.metrics]
    rows = tuple(
        (order.replace("_", " "), *(_value(measured, order, metric) for metric in metrics)) for order in measured.orders
    )
    terms = tuple((metric, metric_of(metric).explanation) for metric in metrics)
    more = (("removing an event", measured.removal_statement), ("explained item", measured.target_statement))
    return Trust(level, TITLES[level], tuple(sentences), ("order of events", *metrics), rows, (*terms, *more))


def _is_worse(measured: Faithfulness, method: str) -> bool:
    """Return whether a method was shown to be less faithful than a simple order in some judged metric."""
    return any(
        one.outcome == "worse"
        for one in measured.contrasts
        if one.order == method and one.reference in REFERENCES and one.metric in JUDGED and one.removed == SHARES
    )


def _value(measured: Faithfulness, order: str, metric: str) -> str:
    one = measured.value(order, metric)
    return f"{one.value:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
