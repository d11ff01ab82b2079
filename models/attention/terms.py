"""The parts that an attention is made of, as its kernels need them, beside queries, keys and values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from models.attention.bias import PositionBias, TimeBias
from models.attention.config import AttentionConfig


class ScoreUnit(Protocol):
    """A network that scores pairs: (r, H, q, k) of queries (r, H, q, K) and keys (r, H, k, K).

    visible: (r, 1, q, k) bool; whatever comes of other pairs is dropped. numbers_per_score: how many it holds for each pair.
    """

    @property
    def numbers_per_score(self) -> int: ...
    def __call__(self, query: Tensor, key: Tensor, visible: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class AttentionTerms:
    """scale: what scores are multiplied by; silu_divisor: what pointwise weights are divided by.

    position, time: biases, where there are. threshold: of 256, how many weights are dropped; with_penalty: whether the penalty of
    the weights is wanted. Both are off outside training. unit: what scores pairs in the place of scaled dot products.
    """

    config: AttentionConfig
    scale: float
    silu_divisor: int
    position: PositionBias | None = None
    time: TimeBias | None = None
    threshold: int = 0
    with_penalty: bool = False
    unit: ScoreUnit | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is learned besides queries, keys and values."""
        return [p for part in (self.position, self.time, self.unit) if part is not None for p in part.parameters()]

    @property
    def is_plain(self) -> bool:
        """Whether all that there is is a softmax over the events up to each."""
        config = self.config
        unmasked = config.mask == "causal" and config.window is None
        return (
            config.normalisation == "softmax"
            and unmasked
            and config.bias == "none"
            and not self.threshold
            and not self.with_penalty
            and self.unit is None
        )


@dataclass(frozen=True)
class Attended:
    """output: (N, C, H, V), what each event saw by each map of weights; penalty: of all weights, a scalar or none."""

    output: Tensor
    penalty: Tensor | None = None
