"""Forms of attention, histories and inputs that the tests of attention share."""

import numpy as np
import torch
from torch import Tensor

from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms
from models.batches.jagged import JaggedLayout, layout_of

MAX_HISTORY = 40
BASE = {"num_heads": 4, "num_key_value_heads": 2}
FORMS = {
    "softmax": {},
    "softmax, shared by all": {"num_key_value_heads": 1},
    "softmax, penalty": {"penalty": 0.1},
    "softmax, bidirectional": {"mask": "bidirectional"},
    "softmax, bias of both": {"bias": "both"},
    "softmax, bucketed": {"bias": "position", "position_bias": "bucketed"},
    "softmax, functional": {"bias": "both", "position_bias": "functional", "time_bias": "functional"},
    "softmax, window": {"window": 5, "bias": "both"},
    "softmax, window of one": {"window": 1},
    "softmax, window and global": {"window": 4, "num_global": 3, "bias": "both"},
    "softmax, bidirectional window": {"window": 3, "mask": "bidirectional", "bias": "position"},
    "softmax, bidirectional window and global": {"window": 3, "mask": "bidirectional", "num_global": 2, "bias": "both"},
    "softmax, wide window": {"window": 30, "num_global": 2},
    "softmax, wide bidirectional window": {"window": 30, "num_global": 2, "mask": "bidirectional"},
    "silu": {"normalisation": "silu"},
    "silu, bias of both": {"normalisation": "silu", "bias": "both"},
    "silu, bias of both, penalty": {"normalisation": "silu", "bias": "both", "penalty": 0.1},
    "silu, channels": {"normalisation": "silu", "bias": "both", "bias_as": "channel"},
    "silu, window": {"normalisation": "silu", "window": 5, "num_global": 1},
    "softmax, channels": {"bias": "position", "bias_as": "channel"},
    "none, bias of both, penalty": {"normalisation": "none", "bias": "both", "penalty": 0.1},
    "none, window and global": {"normalisation": "none", "window": 4, "num_global": 2},
    "sparsemax": {"normalisation": "sparsemax"},
    "sparsemax, window, bias of both": {"normalisation": "sparsemax", "window": 6, "bias": "both"},
    "entmax15": {"normalisation": "entmax15"},
    "entmax15, bidirectional, penalty": {"normalisation": "entmax15", "mask": "bidirectional", "penalty": 0.1},
}
LENGTHS = [[0, 1, 5, 0, 2], [3, 0, 0, 7, 1, 1, 12, 2, 40]]
ODD_LENGTHS = [[4], [1], [0, 0], [1] * 9, [40]]


def config_of(form: str) -> AttentionConfig:
    return AttentionConfig.model_validate({**BASE, **FORMS[form]})


def layout_from(lengths: list[int]) -> JaggedLayout:
    return layout_of(np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def context_of(lengths: list[int], seed: int = 3) -> AttentionContext:
    """Return events minutes to years apart; each is asked about up to a day after it."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.rand(sum(lengths), generator=generator, dtype=torch.float64).mul(18).exp().long()
    times = 10**9 + gaps.cumsum(0)
    return AttentionContext(
        layout_from(lengths), times, times + torch.randint(0, 86400, times.shape, generator=generator)
    )


def random_inputs(config: AttentionConfig, num_events: int, width: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    heads = (config.num_heads, config.key_value_heads, config.key_value_heads)
    return [torch.randn(num_events, h, width, generator=generator, dtype=dtype) * 1.5 for h in heads]


def parts_of(config: AttentionConfig, width: int, dtype: torch.dtype, threshold: int = 0) -> AttentionTerms:
    """Return the parts with biases that are not zero."""
    position = time = None
    if config.uses_position:
        bidirectional = config.mask == "bidirectional"
        position = PositionBias(config.position_bias, config.num_heads, MAX_HISTORY, bidirectional).to(dtype)
    if config.uses_time:
        time = TimeBias(config.time_bias, config.num_heads).to(dtype)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in [p for bias in (position, time) if bias is not None for p in bias.parameters()]:
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return AttentionTerms(config, width**-0.5, MAX_HISTORY, position, time, threshold, config.penalty != 0.0)
