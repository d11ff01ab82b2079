"""Faithfulness of the methods of a request, measured on the best item of each explained user."""

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.explanation.attribution import Attribution
from trainer.explanation.catalogue import Seen
from trainer.explanation.command.questions import Batch
from trainer.explanation.command.request import Measurements
from trainer.explanation.explained import Explained, ExplainedNextItem, ExplainedRanker
from trainer.explanation.faithfulness.measure import long_enough, measure
from trainer.explanation.faithfulness.orders import (
    POPULARITY,
    RANDOM,
    RECENCY,
    order_of,
    popularity_order,
    random_order,
    recency_order,
)
from trainer.explanation.faithfulness.scoring import CatalogueScorer, RankerScorer, Scorer
from trainer.explanation.methods import MethodOptions
from trainer.item_search.score_tiles import ItemShard


def measured_of(
    model: Explained,
    shard: ItemShard | None,
    batch: Batch,
    computed: Mapping[str, Attribution],
    options: MethodOptions,
) -> Measurements:
    """Return the faithfulness of each method for the first item of each user of a batch. Collective.

    Args:
        model: the model.
        shard: for next-item models, this worker's items.
        batch: the questions.
        computed: the values of their events by method.
        options: those of the methods.
    """
    firsts = batch.firsts
    enough = firsts[long_enough(batch.asked.take(firsts))]
    asked = batch.asked.take(enough)
    events = np.isin(batch.asked.owner, enough)
    orders = {name: order_of(one.values[events], asked.offsets) for name, one in computed.items()}
    orders[RANDOM] = random_order(asked.keys, asked.offsets, options.seed)
    orders[RECENCY] = recency_order(asked.offsets)
    orders[POPULARITY] = popularity_order(asked.items, model.trained.train_events, asked.offsets)
    scorer = _scorer(model, shard, batch.seen.of(enough))
    measured = measure(scorer, asked, orders, options.removal, pool=options.pool, seed=options.seed)
    return Measurements(dict(measured.values), measured.lengths, firsts.size - enough.size)


def together(parts: Sequence[Measurements]) -> Measurements | None:
    """Return the measurements of several batches or workers as one; None without any."""
    if not parts:
        return None
    values = {key: np.concatenate([part.values[key] for part in parts]) for key in parts[0].values}
    return Measurements(values, np.concatenate([part.lengths for part in parts]), sum(part.num_short for part in parts))


def _scorer(model: Explained, shard: ItemShard | None, seen: Seen) -> Scorer:
    if isinstance(model, ExplainedRanker):
        return RankerScorer(model)
    assert isinstance(model, ExplainedNextItem)
    assert shard is not None
    return CatalogueScorer(model, shard, seen)
