"""Steps of an epoch under a budget of events, counted by one rank from lengths that all ranks keep."""

import numpy as np
import torch

from trainer.data.stream.dealing import runs_within
from trainer.data.stream.exchange.lengths import ExampleLengths
from trainer.data.stream.order import EpochOrder


def count_steps(order: EpochOrder | None, lengths: ExampleLengths, budget: int, limit: int | None, size: int) -> int:
    """Return the number of steps of an epoch, counted up to about `limit`. Collective: each rank counts an epoch of its own.

    Args:
        order: the order of the epoch; None if this rank counts nothing, and only answers the others.
        lengths: the lengths of examples.
        budget: most input events of a batch.
        limit: the count at which it stops.
        size: number of examples of which lengths are asked for at a time.
    """
    nothing = np.zeros(0, dtype=np.int64)
    held = nothing
    count = first = 0
    while True:
        counts = order is not None and first < order.num_examples and (limit is None or count < limit)
        if not lengths.world.max(torch.tensor([int(counts)])).item():
            return count
        if order is None or not counts:
            lengths.at(nothing, nothing)
            continue
        places = order.places(first, first + size)
        first = min(first + size, order.num_examples)
        held = np.concatenate((held, lengths.at(places.group, places.place)))
        bounds = runs_within(held, budget, first == order.num_examples)
        count += bounds.size - 1
        held = held[bounds[-1] :]
