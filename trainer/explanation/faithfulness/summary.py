"""Means over users with intervals, and paired tests against references. Pure numpy.

Intervals of means are score intervals (trainer.evaluation.confidence). Those of differences are from the paired bootstrap over
users. Tests are randomisation tests, all corrected together (trainer.comparison). Shapes: B users.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.comparison.bootstrap import FEW_USERS, RESAMPLES, bootstrap_means, percentile_intervals
from trainer.comparison.paired_tests import holm, randomisation_test
from trainer.evaluation.confidence import CONFIDENCE, SHARE, Range, difference_interval, mean_interval
from trainer.explanation.faithfulness.measure import UserMeasurements
from trainer.explanation.faithfulness.metrics import larger_is_better
from trainer.explanation.faithfulness.orders import REFERENCES
from trainer.explanation.faithfulness.results import Contrast, Faithfulness, Interval, Measured, Outcome
from trainer.explanation.removal import Removal

LEVEL = 1.0 - CONFIDENCE
CORRELATION = Range(-1.0, 1.0)
COMPARED_WITH = (*REFERENCES, "attention")
_ROUNDING = 1e-12  # values that differ by less are equal

STATEMENTS: dict[Removal, str] = {
    "deleted": "Removing an event means deleting it: the other events close the gap, and positions are counted again. "
    "The other events keep their times, and the time of the request stays.",
    "masked": "Removing an event means masking it: it keeps its position and its time, and its vector is zero.",
    "replaced": "Removing an event means replacing it by an event of another user: it keeps its position and its time.",
}
TOP_ITEM = (
    "The explained item is the model's best candidate for the whole history; the user's own items are no candidates."
)


def summarise(
    measured: UserMeasurements,
    model: str,
    num_short: int,
    seed: int,
    target_statement: str = TOP_ITEM,
    references: Sequence[str] = COMPARED_WITH,
    num_resamples: int = RESAMPLES,
) -> Faithfulness:
    """Return the means of all orders, and their differences to the references.

    Args:
        measured: values of each user; at least one user.
        model: name of the model.
        num_short: number of users that were left out.
        seed: seed of the random order.
        target_statement: which item is explained, in a sentence.
        references: orders that the others are compared with, as far as they were measured. They are also compared with those
            that precede them.
        num_resamples: number of draws of the bootstrap.
    """
    means = tuple(
        Measured(order, metric, removed, float(values.mean()), mean_of(values, SHARE))
        for (order, metric, removed), values in measured.values.items()
    )
    return Faithfulness(
        model=model,
        removal=measured.how,
        removal_statement=STATEMENTS[measured.how],
        target_statement=target_statement,
        num_users=measured.num_users,
        num_short=num_short,
        median_events=float(np.median(measured.lengths)),
        seed=seed,
        measured=means,
        contrasts=_contrasts(measured, references, num_resamples),
    )


def mean_of(values: np.ndarray, within: Range) -> Interval:
    """Return the 95 % interval of the mean of independent values (n,), as plain numbers; the range itself without values."""
    if not values.size:
        return within.low, within.high
    low, high = mean_interval(values, within)
    return float(low), float(high)


def _contrasts(measured: UserMeasurements, references: Sequence[str], num_resamples: int) -> tuple[Contrast, ...]:
    orders = measured.names(0)
    present = [name for name in references if name in orders]
    pairs = [
        (order, reference)
        for order in orders
        for reference in present
        if order != reference and (order not in present or present.index(reference) < present.index(order))
    ]
    keys = [
        (order, reference, metric, removed)
        for order, reference in pairs
        for metric in measured.names(1)
        for removed in measured.names(2)
    ]
    if not keys:
        return ()
    bounds = percentile_intervals(
        bootstrap_means((_difference(measured, key) for key in keys), measured.num_users, num_resamples)
    )
    contrasts = [
        _contrast(_difference(measured, key), key, (float(low), float(high)))
        for key, (low, high) in zip(keys, bounds, strict=True)
    ]
    corrected = holm([one.p for one in contrasts])
    return tuple(
        replace(one, p_corrected=p, outcome=_outcome(one, p)) for one, p in zip(contrasts, corrected, strict=True)
    )


def _difference(measured: UserMeasurements, key: tuple[str, str, str, str]) -> np.ndarray:
    """Return the differences of users, (B,), exactly 0 where only rounding differs."""
    order, reference, metric, removed = key
    differences = measured.values[order, metric, removed] - measured.values[reference, metric, removed]
    return np.where(np.abs(differences) < _ROUNDING, 0.0, differences)


def _contrast(differences: np.ndarray, key: tuple[str, str, str, str], bootstrapped: Interval) -> Contrast:
    order, reference, metric, removed = key
    interval = bootstrapped
    if (differences != 0.0).sum() < FEW_USERS:  # the bootstrap takes a few values for all possible ones
        low, high = difference_interval(differences)
        interval = (float(low), float(high))
    p = float(randomisation_test(differences))
    return Contrast(order, reference, metric, removed, float(differences.mean()), interval, p, 1.0, "none")


def _outcome(one: Contrast, p_corrected: float) -> Outcome:
    if p_corrected >= LEVEL or one.difference == 0.0:
        return "none"
    return "better" if (one.difference > 0.0) == larger_is_better(one.metric) else "worse"
