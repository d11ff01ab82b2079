"""Levels of removal: how many events of a history are removed, in growing shares or in fixed numbers. Pure numpy.

A sequence model needs at least one event, so the empty history of the published curves is left out: it is the same for every order.
Shares of removal are 0, 0.1 ... 0.9, and shares of what is kept 0.1, 0.2 ... 1. Shapes: B users, S levels.
"""

from dataclasses import dataclass

import numpy as np

from trainer.explanation.faithfulness.metrics import Side

SHARES = "shares"


@dataclass(frozen=True)
class Levels:
    """How many events are removed."""

    num_shares: int = 10
    """Number of levels of the continuous metrics."""
    fixed: tuple[int, ...] = (2, 3, 4)
    """Numbers of removed or kept events of the other metrics."""

    @property
    def fewest_events(self) -> int:
        """The smallest number of events of a history that all levels leave non-empty."""
        return max(2, *(number + 1 for number in self.fixed)) if self.fixed else 2

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is removed: "shares", and each fixed number."""
        return (SHARES, *(str(number) for number in self.fixed))

    def counts(self, lengths: np.ndarray, side: Side) -> np.ndarray:
        """Return the numbers of removed events, or of kept ones for the side "kept", (B, S) int64.

        Columns are the shares in ascending order, then the fixed numbers.

        Args:
            lengths: (B,) number of events of each history.
            side: what is removed.
        """
        steps = np.arange(self.num_shares) + (1 if side == "kept" else 0)
        # Halves are rounded up, in whole numbers: a share of a length has no rounding error.
        counts = (2 * steps * lengths[:, None] + self.num_shares) // (2 * self.num_shares)
        low, high = (1, lengths) if side == "kept" else (0, lengths - 1)
        counts = np.clip(counts, low, high[:, None] if isinstance(high, np.ndarray) else high)
        fixed = np.broadcast_to(np.asarray(self.fixed, np.int64), (lengths.size, len(self.fixed)))
        return np.concatenate((counts, fixed), axis=1).astype(np.int64)

    def removed(self, lengths: np.ndarray, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Return which stretch of an order is removed at each level: its first place and its end, (B, S) int64 each.

        Args:
            lengths: as for `counts`.
            side: what is removed.
        """
        counts, ends = self.counts(lengths, side), np.broadcast_to(lengths[:, None], (lengths.size, self.num_levels))
        match side:
            case "most":
                return np.zeros_like(counts), counts
            case "least":
                return ends - counts, ends
            case "kept":
                return counts, ends

    @property
    def num_levels(self) -> int:
        """S, the number of columns of `counts`."""
        return self.num_shares + len(self.fixed)

    def summarise(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of users by what is removed, (B,) each.

        The area over shares is that of the trapezoid rule, divided by the range of shares, so that it stays a mean.

        values: (B, S) at the levels.
        """
        weights = np.ones(self.num_shares)
        weights[[0, -1]] = 0.5
        area = values[:, : self.num_shares] @ (weights / weights.sum())
        columns = values[:, self.num_shares :].T
        return {SHARES: area} | {str(number): column for number, column in zip(self.fixed, columns, strict=True)}
