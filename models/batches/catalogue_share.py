"""The share of the catalogue that a rank scores, where the ranks of a group divide the catalogue among them."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


class Ranks(Protocol):
    """The ranks that divide a catalogue, as one of them sees them (sharding.world.World). All methods are collective."""

    @property
    def rank(self) -> int:
        """This rank, from 0."""

    @property
    def world_size(self) -> int:
        """The number of ranks."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over ranks, in place, and return it."""

    def max(self, tensor: Tensor) -> Tensor:
        """Compute the maximum of a tensor over ranks, in place, and return it."""

    def gather_sized(self, tensor: Tensor, sizes: list[int]) -> list[Tensor]:
        """Return every rank's tensor, in rank order. sizes: their first dimensions."""

    def exchange(self, leaving: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send parts of a flat tensor to each rank, and return what arrives, in rank order."""


@dataclass(frozen=True)
class CatalogueShare:
    """The items that this rank compares with the targets of all ranks of its group."""

    first: int  # smallest item id
    stop: int  # one past the largest
    place: int  # of the first id in the looked-up ids; the others follow
    # by piece of the batch (models.batches.micro_batches), the number of targets of each rank; empty until ranks have agreed
    counts: tuple[tuple[int, ...], ...] = ()
    ranks: Ranks | None = None  # of the group

    def of_piece(self, number: int) -> "CatalogueShare":
        """Return the share for one piece of the batch."""
        return replace(self, counts=self.counts[number : number + 1])
