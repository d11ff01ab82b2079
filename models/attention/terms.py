"""The inputs of attention kernels besides queries, keys and values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from models.attention.bias import PositionBias, TimeBias
from models.attention.config import AttentionConfig


class ScoreUnit(Protocol):
    """A network that scores pairs: (r, H, q, k) of queries (r, H, q, K) and keys (r, H, k, K).

    `visible` is (r, 1, q, k) bool; the scores of other pairs are ignored. `numbers_per_score` is how many numbers it holds per
    pair.
    """

    @property
    def numbers_per_score(self) -> int: ...
    def __call__(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class AttentionTerms:
    """The form of an attention. `threshold` and `with_penalty` are off outside of training."""

    config: AttentionConfig
    scale: float  # factor of scores
    silu_divisor: int  # divides pointwise weights
    position: PositionBias | None = None  # bias by position
    time: TimeBias | None = None  # bias by time
    threshold: int = 0  # of 256, how many weights are dropped
    with_penalty: bool = False  # the penalty of the weights is computed
    unit: ScoreUnit | None = None  # scores pairs in place of scaled dot products

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the learned weights besides queries, keys and values."""
        return [p for part in (self.position, self.time, self.unit) if part is not None for p in part.parameters()]

    @property
    def is_plain(self) -> bool:
        """Return whether this is plain causal softmax attention."""
        return self.is_softmax_without_bias and self.config.mask == "causal" and self.config.window is None

    @property
    def is_softmax_without_bias(self) -> bool:
        """Return whether the weights are a softmax of the scores alone, over the events of any mask."""
        return (
            self.config.normalisation == "softmax"
            and self.config.bias == "none"
            and not self.threshold
            and not self.with_penalty
            and self.unit is None
        )


@dataclass(frozen=True)
class Attended:
    """The result of attention."""

    output: Tensor  # (N, C, H, V), the attended values of each map of weights
    penalty: Tensor | None = None  # of all weights, a scalar or None
