"""The parts that an attention is made of, as its kernels need them, beside queries, keys and values."""

from dataclasses import dataclass

from torch import Tensor, nn

from models.attention.bias import PositionBias, TimeBias
from models.attention.config import AttentionConfig


@dataclass(frozen=True)
class Parts:
    """scale: what scores are multiplied by; silu_divisor: what pointwise weights are divided by.

    position, time: biases, where there are. threshold: of 256, how many weights are dropped; with_penalty: whether the penalty of
    the weights is wanted. Both are off outside training.
    """

    config: AttentionConfig
    scale: float
    silu_divisor: int
    position: PositionBias | None = None
    time: TimeBias | None = None
    threshold: int = 0
    with_penalty: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is learned besides queries, keys and values."""
        return [p for bias in (self.position, self.time) if bias is not None for p in bias.parameters()]

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
        )


@dataclass(frozen=True)
class Attended:
    """output: (N, C, H, V), what each event saw by each map of weights; penalty: of all weights, a scalar or none."""

    output: Tensor
    penalty: Tensor | None = None
