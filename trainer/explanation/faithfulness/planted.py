"""Recovery of the planted causes of synthetic logs (trainer.data.synthetic.log) by the first events of an order.

The explained item is an effect, which occurs in no other way than after its cause. The log's truth names the event that caused it.
With one cause per effect, the precision of the first three events is at most 1/3. Pure numpy.

Shapes: B questions, each about an effect; N events of all of them.
"""

from collections.abc import Mapping

import numpy as np

from trainer.evaluation.confidence import SHARE
from trainer.explanation.faithfulness.maps import first_events
from trainer.explanation.faithfulness.orders import RECENCY
from trainer.explanation.faithfulness.results import PlantedRecovery
from trainer.explanation.faithfulness.summary import mean_of
from trainer.explanation.questions import Questions


def is_cause(asked: Questions, causes: np.ndarray) -> np.ndarray:
    """Return which events are the planted causes, (N,) bool. An item occurs once in a synthetic history.

    Args:
        asked: the questions.
        causes: (B,) item id of the cause of each question.
    """
    return np.asarray(asked.items == causes[asked.owner])


def recoveries(
    orders: Mapping[str, np.ndarray], caused: np.ndarray, offsets: np.ndarray, k: int = 3
) -> tuple[PlantedRecovery, ...]:
    """Return how well each order finds the causes.

    Args:
        orders: orders by name, (N,) each.
        caused: (N,) bool, the causes.
        offsets: (B + 1,) bounds of the questions.
        k: number of events, the first ones of an order.
    """
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(lengths.size), lengths)
    number = {
        name: np.bincount(owner, first_events(order, offsets, k) & caused, lengths.size)
        for name, order in orders.items()
    }
    of_recency = float(number[RECENCY].mean()) / k if RECENCY in number and lengths.size else 0.0
    return tuple(
        PlantedRecovery(
            order=name,
            precision=float(counts.mean()) / k,
            interval=mean_of(counts / k, SHARE),
            hit_rate=float((counts > 0).mean()),
            k=k,
            num_effects=lengths.size,
            ratio_to_recency=float(counts.mean()) / k / of_recency if of_recency else None,
        )
        for name, counts in number.items()
    )
