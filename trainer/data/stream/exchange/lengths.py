"""Lengths of all examples, divided among the ranks: each rank reads and keeps those of a range of row groups.

Batches of a budget of events are cut by the lengths of all their examples. The ranks ask one another for the lengths of a bounded
number of examples at a time, so no rank reads or keeps those of all.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sharding.world import World
from trainer.data.stream.examples import num_windows, windows_of
from trainer.data.stream.row_groups import RowGroupReader


@dataclass(frozen=True)
class ExampleLengths:
    """Input events of examples, as one rank sees them."""

    # All ranks, for collectives of CPU tensors.
    world: World
    # (groups + 1,) examples before each row group.
    first_examples: np.ndarray
    # (ranks + 1,) bounds of the row groups of each rank.
    bounds: np.ndarray
    # Input events of the examples in this rank's row groups, int32.
    own: np.ndarray

    def at(self, groups: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the input events of the examples at these places of their row groups, (n,) int64. Collective."""
        owner = np.searchsorted(self.bounds, groups, side="right") - 1
        index = self.first_examples[groups] + places - self.first_examples[self.bounds[owner]]
        by_owner = np.argsort(owner, kind="stable")
        asked = np.bincount(owner, minlength=self.world.world_size).tolist()
        answered = self.world.exchange_ints(asked)
        questions = self.world.exchange(torch.from_numpy(index[by_owner].astype(np.int32)), asked, answered)
        answers = self.world.exchange(torch.from_numpy(self.own[questions.numpy()]), answered, asked)
        lengths = np.empty(groups.size, dtype=np.int64)
        lengths[by_owner] = answers.numpy()
        return lengths


def ranges_of(num_groups: int, world_size: int) -> np.ndarray:
    """Return the bounds of the row groups of which each rank keeps lengths, (ranks + 1,) int64. A range is in few files."""
    bounds: np.ndarray = np.arange(world_size + 1, dtype=np.int64) * num_groups // world_size
    return bounds


def read_own_ends(reader: RowGroupReader, world: World, last_is_input: bool) -> np.ndarray:
    """Return one more than the input events of the rows in this rank's row groups, (rows,) int32, without reading any event.

    Raises UserError, on this rank alone, naming a file that cannot be read.
    """
    bounds = ranges_of(len(reader.group_rows), world.world_size)
    return reader.train_ends(int(bounds[world.rank]), int(bounds[world.rank + 1])) + np.int32(last_is_input)


def divided_lengths(
    reader: RowGroupReader, ends: np.ndarray, max_history: int, windows: bool, world: World
) -> tuple[tuple[int, ...], ExampleLengths]:
    """Return the number of examples of every row group, and the lengths of this rank's examples. Collective.

    Args:
        reader: reads row groups.
        ends: what `read_own_ends` returned.
        max_history: most input events of an example.
        windows: whether long histories are cut into windows.
        world: all ranks, for collectives of CPU tensors.
    """
    bounds = ranges_of(len(reader.group_rows), world.world_size)
    inputs = ends.astype(np.int64) - 1
    sizes = np.asarray(reader.group_rows, dtype=np.int64)
    if windows:
        first, last = bounds[world.rank : world.rank + 2]
        before = np.concatenate(([0], np.cumsum(num_windows(ends, max_history))))
        rows = reader.first_rows[first : last + 1] - reader.first_rows[first]
        own_sizes = torch.from_numpy(np.diff(before[rows]))
        sizes = np.concatenate(world.gather_sized(own_sizes, np.diff(bounds).tolist()))
        row, window = windows_of(ends, max_history)
        inputs = inputs[row] - window * max_history
    own = np.clip(inputs, 0, max_history).astype(np.int32)
    first_examples = np.concatenate(([0], np.cumsum(sizes)))
    return tuple(sizes.tolist()), ExampleLengths(world, first_examples, bounds, own)
