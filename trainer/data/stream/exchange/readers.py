"""The rank that reads each row group in an epoch, if ranks exchange examples. Imports no torch.

Row groups are read in their permuted order, one of each stream at a time. So the order is cut into blocks of about as many row
groups as are read at a time, and each block is dealt evenly. Within a block the row group with most work goes to the rank with
least work in the other blocks, so that sums over the epoch are even as well.
"""

import numpy as np

SWEEPS = 3  # times that each block is dealt: at first given the blocks before it, then given all others


def readers_of(permuted: np.ndarray, work: np.ndarray, num_streams: int, world_size: int) -> np.ndarray:
    """Return the rank that reads each row group, (groups,) int64: a function of the order and the number of ranks.

    Args:
        permuted: (groups,) row groups in the order of the epoch.
        work: (groups,) work of reading each row group, such as its events.
        num_streams: number of row groups that are read at a time.
        world_size: number of ranks.
    """
    readers = np.zeros(permuted.size, dtype=np.int64)
    load = np.zeros(world_size, dtype=np.int64)
    block = world_size * max(1, num_streams // world_size)
    for sweep in range(SWEEPS):
        for start in range(0, permuted.size, block):
            groups = permuted[start : start + block]
            groups = groups[np.argsort(-work[groups], kind="stable")]
            if sweep:
                np.subtract.at(load, readers[groups], work[groups])
            for turn in range(0, groups.size, world_size):
                dealt = groups[turn : turn + world_size]
                ranks = np.argsort(load, kind="stable")[: dealt.size]
                readers[dealt] = ranks
                load[ranks] += work[dealt]
    return readers
