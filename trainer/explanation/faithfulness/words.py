"""Results of faithfulness in plain words, for pages. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.explanation.faithfulness.levels import SHARES
from trainer.explanation.faithfulness.orders import REFERENCES
from trainer.explanation.faithfulness.results import Faithfulness

Level = Literal["faithful", "partly", "not"]
JUDGED = ("pos@10", "del", "ins", "cdcg")
"""Metrics that decide the verdict, as far as they were measured."""
NAMES = {
    "random": "a random order",
    "recency": "the order of time, the newest event first",
    "popularity": "the order of popularity",
    "attention": "the attention weights",
}


@dataclass(frozen=True)
class Verdict:
    """How far an order can be trusted for a model."""

    order: str
    """Name of the method."""
    level: Level
    """"faithful": better than every reference in every judged metric, "partly": better than random in most and worse than no
    reference in most; else "not"."""
    sentences: tuple[str, ...]
    """The reasons, in plain words."""


def verdict(result: Faithfulness, order: str, removed: str = SHARES) -> Verdict:
    """Return how far an order can be trusted for the measured model.

    Args:
        result: the measurement.
        order: name of the method.
        removed: the levels that decide.
    """
    judged = [metric for metric in JUDGED if metric in result.metrics]
    references = [name for name in REFERENCES if name in result.orders and name != order]
    outcomes = {
        reference: [
            contrast.outcome
            for metric in judged
            if (contrast := result.contrast(order, reference, metric, removed)) is not None
        ]
        for reference in references
    }
    sentences = [_numbers(result, order), *(_against(name, outcomes[name]) for name in references)]
    return Verdict(order, _level(outcomes), tuple(sentence for sentence in sentences if sentence))


def _level(outcomes: Mapping[str, Sequence[str]]) -> Level:
    everything = [outcome for of_reference in outcomes.values() for outcome in of_reference]
    if everything and all(outcome == "better" for outcome in everything):
        return "faithful"
    of_random = outcomes.get("random", [])
    beats_random = of_random.count("better") * 2 > len(of_random)
    beaten = any(of.count("worse") * 2 > len(of) for of in outcomes.values())
    return "partly" if beats_random and not beaten else "not"


def _numbers(result: Faithfulness, order: str) -> str:
    """Return what happens without the three most important events, or as many as were measured; empty for rankers."""
    numbers = [name for name in result.removals if name != SHARES]
    if "pos@10" not in result.metrics or not numbers or "random" not in result.orders:
        return ""
    number = "3" if "3" in numbers else numbers[-1]
    ours, by_chance = (1.0 - result.value(name, "pos@10", number).value for name in (order, "random"))
    return (
        f"Without the {number} events that {NAMES.get(order, order)} ranks first, the item leaves the ten best for {ours:.0%} of "
        f"users. Without {number} random events it does so for {by_chance:.0%}."
    )


def _against(reference: str, outcomes: Sequence[str]) -> str:
    if not outcomes:
        return ""
    name = NAMES[reference]
    better, worse = outcomes.count("better"), outcomes.count("worse")
    if better == len(outcomes):
        return f"It is more faithful than {name} in all {len(outcomes)} measures."
    if worse == len(outcomes):
        return f"It is less faithful than {name} in all {len(outcomes)} measures."
    if not better and not worse:
        return f"No difference to {name} was shown."
    return f"Compared with {name}, it is more faithful in {better} of {len(outcomes)} measures and less faithful in {worse}."
