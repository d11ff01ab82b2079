"""Items that are ranked in an evaluation: the whole catalogue, those that are available at a moment, or those of a file.

Every rule is a first moment per item: an item is a candidate of a query if that moment is not after the query's. Items of
a file have the smallest moment, others the largest one.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sharding.world import World
from trainer.data.dataset.manifest import Manifest
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.evaluation.next_item.listed import ALL, AVAILABLE, listed_items
from trainer.storage.objects.paths import path_of

ALWAYS, NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Candidates:
    """Items that may be ranked, by a first moment for each."""

    available_from: np.ndarray
    """(num_ids,) int64 by id: the moment from which an item is a candidate."""
    by_time: bool
    """Whether the moment of a query matters."""

    def moments(self, target_times: np.ndarray | None, target_offsets: np.ndarray) -> np.ndarray:
        """Return the moment of each query, (Q,) int64: the time of its first target."""
        if not self.by_time:
            return np.zeros(target_offsets.size - 1, np.int64)
        assert target_times is not None
        first: np.ndarray = target_times[target_offsets[:-1]]
        return first


def candidates_of(
    setting: str, folder: Path, manifest: Manifest, num_ids: int, unknown: bool, world: World
) -> Candidates | None:
    """Return the candidates of a setting, None for the whole catalogue. Collective.

    Args:
        setting: EvaluateConfig.candidates.
        folder: the dataset.
        manifest: its manifest.
        num_ids: number of ids that the model scores, including id 0.
        unknown: whether items that the training part does not know have ids.
        world: all ranks.

    Raises:
        UserError: the file of items cannot be read, or the model knows none of them.
    """
    if setting == ALL:
        return None
    if setting == AVAILABLE:
        return Candidates(first_times(folder, manifest, num_ids, unknown, world), by_time=True)
    moments = np.full(num_ids, NEVER)
    moments[listed_items(path_of(setting), folder, manifest, unknown).ids] = ALWAYS
    return Candidates(moments, by_time=False)


def first_times(folder: Path, manifest: Manifest, num_ids: int, unknown: bool, world: World) -> np.ndarray:
    """Return the time of the first event of each item, of any user and split: (num_ids,) int64. Collective.

    Items without an event have the largest time. Each rank reads its share of the row groups.
    """
    reader = RowGroupReader(folder, manifest, ColumnSelection(times=True, unknown=unknown))
    first = np.full(num_ids, NEVER)
    for group in range(world.rank, len(reader.group_rows), world.world_size):
        packed = reader.read([group])[group]
        assert packed.times is not None
        np.minimum.at(first, packed.items, packed.times)
    # There is a maximum over ranks, and the complement of a number reverses the order without overflow.
    reversed_order = torch.from_numpy(~first).to(world.device)
    moments: np.ndarray = ~world.max(reversed_order).cpu().numpy()
    return moments
