"""Order of events that share user and time, compared with the order of their items: exact counts that add up over partitions.

Events with equal times keep the order of the log. Where a log was sorted by item id within ties, a model can guess the next item
from the order alone: it has a larger id than the last one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.dataset.grouping import Ints, same_as_before


@dataclass(frozen=True)
class TiedOrder:
    """Neighbours: two events in a row of one user with equal times and different items."""

    # Neighbours of which the second has the larger item: a number, or a text in the order of its bytes.
    ascending: int = 0
    # Neighbours of which the second has the smaller item.
    descending: int = 0
    # Users with neighbours.
    users: int = 0
    # Sum over users of (ascending - descending)^2.
    squares: int = 0

    def __add__(self, other: "TiedOrder") -> "TiedOrder":
        return TiedOrder(
            self.ascending + other.ascending,
            self.descending + other.descending,
            self.users + other.users,
            self.squares + other.squares,
        )

    @property
    def neighbours(self) -> int:
        """Number of neighbours."""
        return self.ascending + self.descending

    @property
    def errors_from_half(self) -> float:
        """Standard errors between the share of ascending neighbours and one half. Users are the sampling unit."""
        return abs(self.ascending - self.descending) / float(self.squares) ** 0.5 if self.squares else 0.0


def tied_order_of(users: Ints, times: Ints, numbers: Ints, vocabulary: pa.Array) -> TiedOrder:
    """Count the neighbours of one partition.

    Args:
        users: (n,) users of events that are sorted by user and time, and else in the order of the log.
        times: (n,).
        numbers: (n,) numbers of items in the catalogue, from 1; 0 is none, and is not compared.
        vocabulary: the values of the items in the logs; entry k is number k + 1.
    """
    second = np.flatnonzero(same_as_before(users, times))
    second = second[(numbers[second] > 0) & (numbers[second - 1] > 0)]
    if not second.size:
        return TiedOrder()
    tied, place = np.unique(np.concatenate((numbers[second - 1], numbers[second])), return_inverse=True)
    # Numbers ascend with values only among the items that an append added together, and that are known or not.
    order = pc.array_sort_indices(vocabulary.take(pa.array(tied - 1))).to_numpy()
    rank = np.empty(tied.size, np.int64)
    rank[order] = np.arange(tied.size)
    before, after = np.split(rank[place], 2)
    signs: npt.NDArray[np.int64] = np.sign(after - before)
    own, user = np.unique(users[second], return_inverse=True)
    excess = np.bincount(user, signs, own.size).astype(np.int64)
    any_of_user = np.bincount(user, signs != 0, own.size)
    return TiedOrder(
        int((signs > 0).sum()), int((signs < 0).sum()), int((any_of_user > 0).sum()), int((excess**2).sum())
    )
