"""Sorting of arrays that are in temporary files, with memory for a few blocks. Pure numpy.

Blocks are sorted one by one. Then the sorted blocks are merged one range of values after another: samples of all blocks divide the
values into ranges that fit into memory. A value that divides ranges may have too many copies to fit. They are copied in their
order.
"""

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.spooled import blocks, spooled


def sorted_with_places(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values (n,) without NaN in ascending order, and their places, int64; equal values are in the order of their places."""
    ordered = spooled(values.size, values.dtype)
    places = spooled(values.size, np.int64)
    for block in blocks(values.size):
        own = values[block]
        order = np.argsort(own, kind="stable")
        ordered[block] = own[order]
        places[block] = order + block.start
    runs = list(blocks(values.size))
    return (ordered, places) if len(runs) == 1 else _merged(ordered, places, runs)


def at_shares(ordered: np.ndarray, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the smallest values with at least these shares of all ascending values (n,) up to them, as np.quantile does.

    Its method is "inverted_cdf".
    """
    places = np.maximum(np.ceil(ordered.size * np.asarray(shares) - 1), 0).astype(np.int64)
    chosen: np.ndarray = np.asarray(ordered[places])
    return chosen


def _merged(ordered: np.ndarray, places: np.ndarray, runs: list[slice]) -> tuple[np.ndarray, np.ndarray]:
    """Merge sorted runs, earlier runs first among equal values."""
    cuts = _cuts(ordered, runs)
    below = np.stack([np.searchsorted(ordered[run], cuts, side="left") + run.start for run in runs])
    above = np.stack([np.searchsorted(ordered[run], cuts, side="right") + run.start for run in runs])
    begins = np.column_stack([[run.start for run in runs], above])
    ends = np.column_stack([below, [run.stop for run in runs]])
    to = spooled(ordered.size, ordered.dtype), spooled(places.size, np.int64)
    done = 0
    for number in range(cuts.size + 1):
        between = [slice(*bounds) for bounds in zip(begins[:, number], ends[:, number], strict=True)]
        own, at = (np.concatenate([array[piece] for piece in between]) for array in (ordered, places))
        order = np.argsort(own, kind="stable")
        to[0][done : done + own.size] = own[order]
        to[1][done : done + own.size] = at[order]
        done += own.size
        if number < cuts.size:
            for begin, end in zip(below[:, number], above[:, number], strict=True):
                to[0][done : done + end - begin] = ordered[begin:end]
                to[1][done : done + end - begin] = places[begin:end]
                done += int(end - begin)
    return to


def _cuts(ordered: np.ndarray, runs: list[slice]) -> np.ndarray:
    """Return ascending values with at most one block of others between two of them.

    With k runs, every s-th value of each is in a sample, and every k-th value of the sorted sample is a cut. So fewer than k values
    of the sample are between two cuts, and at most s (k + k) values. Here s is half of a block's k-th part.
    """
    step = max(1, (runs[0].stop - runs[0].start) // (2 * len(runs)))
    sample = np.sort(np.concatenate([ordered[run][::step] for run in runs]))
    return np.unique(sample[:: len(runs)])
