"""Results of measurements of faithfulness, as values that pages, tables and JSON files read. No torch.

Each class survives a round trip through JSON: `from_json(to_json(result))` equals the result.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from trainer.explanation.faithfulness.levels import SHARES
from trainer.explanation.faithfulness.metrics import larger_is_better

T = TypeVar("T")
Outcome = Literal["better", "worse", "none"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Measured:
    """One metric of one order."""

    order: str
    """Name of the method or rule that orders the events."""
    metric: str
    """Name of the value, for example "pos@5" or "del"."""
    removed: str
    """What is removed: "shares" for the area over growing shares of the history, or a number of events."""
    value: float
    """Mean over users, in [0, 1]."""
    interval: Interval
    """95 % confidence interval over users."""

    @property
    def larger_is_better(self) -> bool:
        """Return whether a larger value is better."""
        return larger_is_better(self.metric)


@dataclass(frozen=True)
class Contrast:
    """The difference of two orders in one metric, over the same users."""

    order: str
    """Name of the order."""
    reference: str
    """Name of the order that it is compared with."""
    metric: str
    """As in `Measured`."""
    removed: str
    """As in `Measured`."""
    difference: float
    """Mean of order minus reference."""
    interval: Interval
    """95 % interval of the difference over users."""
    p: float
    """The p-value of the randomisation test."""
    p_corrected: float
    """The same after Holm's correction for all contrasts of the result."""
    outcome: Outcome
    """Whether the order is more faithful ("better") or less ("worse") than the reference; "none": no difference was shown."""


@dataclass(frozen=True)
class Faithfulness:
    """Measurement of one model, for one meaning of removing an event."""

    model: str
    """Name of the model, for example the kind of its encoder."""
    removal: str
    """Meaning of removing an event: "deleted", "masked" or "replaced"."""
    removal_statement: str
    """The same in a sentence."""
    target_statement: str
    """Which item is explained, in a sentence."""
    num_users: int
    """Number of measured users."""
    num_short: int
    """Number of users without enough events."""
    median_events: float
    """Median number of events of a history."""
    seed: int
    """Seed of the random order and of replaced events."""
    measured: tuple[Measured, ...]
    """Metrics of all orders."""
    contrasts: tuple[Contrast, ...]
    """Differences to the references."""

    @property
    def orders(self) -> tuple[str, ...]:
        """Names of the orders."""
        return tuple(dict.fromkeys(one.order for one in self.measured))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(dict.fromkeys(one.metric for one in self.measured))

    @property
    def removals(self) -> tuple[str, ...]:
        """Levels: "shares", and the fixed numbers."""
        return tuple(dict.fromkeys(one.removed for one in self.measured))

    def value(self, order: str, metric: str, removed: str = SHARES) -> Measured:
        """Return a metric of an order. Raises KeyError if it was not measured."""
        for one in self.measured:
            if (one.order, one.metric, one.removed) == (order, metric, removed):
                return one
        raise KeyError(f"{metric} of {order} with {removed} was not measured")

    def contrast(self, order: str, reference: str, metric: str, removed: str = SHARES) -> Contrast | None:
        """Return the difference of an order to a reference; None if they were not compared."""
        asked = (order, reference, metric, removed)
        for one in self.contrasts:
            if (one.order, one.reference, one.metric, one.removed) == asked:
                return one
        return None


@dataclass(frozen=True)
class RandomisedStage:
    """The weights of an explanation before and after parts of the model were randomised."""

    randomised: str
    """What was randomised, from the output to the input: "output", "block 2" and so on, "items"."""
    correlation: float
    """Mean over users of Spearman's correlation of the events' weights before and after."""
    interval: Interval
    """95 % confidence interval over users."""


@dataclass(frozen=True)
class RandomisedWeights:
    """Check of a method with randomised weights: an explanation of the model must change with it (Adebayo et al. 2018)."""

    order: str
    """Name of the method."""
    stages: tuple[RandomisedStage, ...]
    """Stages; each also randomises everything that earlier ones did."""
    num_users: int
    """Number of users."""


@dataclass(frozen=True)
class UniformAttention:
    """Change of the output when all attention weights that an event can give are equal."""

    same_top: float
    """Share of users with the same best item."""
    same_top_interval: Interval
    """95 % confidence interval over users."""
    overlap: float
    """Mean share of the ten best items that stay among the ten best."""
    probability: float
    """Mean probability of the best item, with learned attention."""
    probability_uniform: float
    """Mean probability of the same item, with uniform attention."""
    num_users: int
    """Number of users."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of the maps of models that differ in their seed alone, for the same items."""

    order: str
    """Name of the method."""
    correlation: float
    """Mean over pairs of seeds and users of Spearman's correlation of the events' weights."""
    correlation_interval: Interval
    """95 % confidence interval over users."""
    overlap: float
    """Mean share of the three most important events that both models have in common."""
    overlap_interval: Interval
    """95 % confidence interval over users."""
    num_models: int
    """Number of models."""
    num_users: int
    """Number of users."""


@dataclass(frozen=True)
class PlantedRecovery:
    """Share of the planted causes of synthetic logs that an order finds."""

    order: str
    """Name of the method or rule."""
    precision: float
    """Mean over effects of the share of planted causes among the first `k` events."""
    interval: Interval
    """95 % confidence interval over effects."""
    hit_rate: float
    """Share of effects with a planted cause among the first `k` events."""
    k: int
    """Number of events."""
    num_effects: int
    """Number of effects."""
    ratio_to_recency: float | None
    """Precision over that of recency order; None if that is 0."""


_PARTS: dict[type, dict[str, type]] = {
    Faithfulness: {"measured": Measured, "contrasts": Contrast},
    RandomisedWeights: {"stages": RandomisedStage},
}
_INTERVALS = ("interval", "same_top_interval", "correlation_interval", "overlap_interval")


def to_json(result: Any) -> dict[str, Any]:
    """Return a result of this module as plain values for JSON."""
    return asdict(result)


def from_json(kind: type[T], values: dict[str, Any]) -> T:
    """Return a result from its plain values.

    Args:
        kind: the class of the result.
        values: as `to_json` returns them, or as they were read from a file.
    """
    parts = _PARTS.get(kind, {})
    given = {entry.name: values[entry.name] for entry in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name in parts:
            given[name] = tuple(from_json(parts[name], one) for one in given[name])
        elif name in _INTERVALS:
            given[name] = tuple(given[name])
    return kind(**given)
