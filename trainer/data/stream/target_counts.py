"""Target frequencies: how often each item is a target in an epoch, which is how often draws from targets return it.

This differs from its occurrences in the training part. The first event of a history is no target. Of a long history
only the most recent events may be targets, and with truncation only the most recent ones of each example. Masked items
are targets where they are masked. With stochastic length an event is a target in a part of the epochs.
"""

import numpy as np

from models.config import NextItemConfig
from sharding.world import World
from trainer.data.stream.columns import stretches
from trainer.data.stream.masking import mask_probabilities
from trainer.data.stream.packed import PackedHistories
from trainer.data.stream.row_groups import RowGroupReader
from trainer.data.stream.stochastic_length import shortened_length, target_probabilities

UNITS = 1 << 20  # units of one target: counts are whole numbers, so that sums do not depend on their order


def count_targets(
    reader: RowGroupReader, config: NextItemConfig, windows: bool, num_known: int, world: World
) -> np.ndarray:
    """Return the targets in this rank's part of the row groups: (num_known,) int64, in UNITS, on average over epochs.

    It reads the items of these row groups once. Items that the training part does not know are never learned, and not
    counted. Raises UserError naming a file that cannot be read.
    """
    counts = np.zeros(num_known, dtype=np.int64)
    for group in range(world.rank, len(reader.group_rows), world.world_size):
        items, units = _targets_of(reader.read([group])[group], config, windows)
        known = (items > 0) & (items < num_known)
        # Sums of float64 are exact here: a row group has far fewer than 2^33 events.
        counts += np.bincount(items[known], units[known], num_known).astype(np.int64)
    return counts


def _targets_of(packed: PackedHistories, config: NextItemConfig, windows: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (items, units) of every target of a row group."""
    first = packed.starts + int(not config.masks_items)  # the first event is a target only if it can be masked
    last = packed.starts + packed.train_end
    if not windows:
        first = np.maximum(first, last - config.max_history)
    places, offsets = stretches(first, np.maximum(first, last))
    items = packed.items.take(places)
    lengths = np.diff(offsets)
    example = np.repeat(np.arange(lengths.size), lengths)
    from_end = offsets[1:][example] - np.arange(items.size)  # 1 for the last event of a history
    # Windows are counted from the most recent one; only the oldest of a history is shorter.
    window = (from_end - 1) // config.max_history
    length = np.minimum(config.max_history, lengths[example] - window * config.max_history)
    from_end -= window * config.max_history
    newest = config.encoder.num_newest
    if config.stochastic_length is not None:
        shortened = shortened_length(config.max_history, config.stochastic_length)
        return items, np.rint(target_probabilities(length, from_end, shortened, newest) * UNITS)
    if not config.masks_items:
        return items, np.where(from_end <= (newest or config.max_history), UNITS, 0)
    is_last = from_end == 1
    return items, np.rint(mask_probabilities(length, is_last, config.masking) * UNITS)
