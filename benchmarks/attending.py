"""Attention of every form, forward and backward, in events per second, and how it changes as histories grow.

Compared with torch's fused softmax attention over the same buckets, the ceiling of what a form could cost on a CPU; and for long
histories with that fused kernel on whole histories: its cost grows with their length, that of a window does not.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Comparison, take_turns
from models.attention.attend import attend
from models.attention.bias import PositionBias, TimeBias
from models.attention.blocks import AttentionContext
from models.attention.config import AttentionConfig
from models.attention.terms import AttentionTerms
from models.batches.jagged import layout_of

NUM_HEADS, HEAD_WIDTH = 2, 32
NUM_HISTORIES, MAX_HISTORY = 128, 200
LONG_EVENTS = 16_384  # events of each batch of long histories
WINDOW = 128
FORMS: dict[str, dict[str, Any]] = {
    "softmax, position bias": {"bias": "position"},
    "softmax, position and time bias": {"bias": "both"},
    "softmax, dropout on weights": {"dropout": 0.1},
    "silu": {"normalisation": "silu"},
    "silu, position and time bias (HSTU)": {"normalisation": "silu", "bias": "both"},
    "silu, biases as channels (FuXi-alpha)": {"normalisation": "silu", "bias": "both", "bias_as": "channel"},
    "sparsemax": {"normalisation": "sparsemax"},
    "entmax15": {"normalisation": "entmax15"},
    "softmax, window of 32": {"window": 32},
}


def compare(turns: int) -> Iterator[Comparison]:
    """Measure every form on histories of 18 to 200 events, on average as long as MovieLens-1M's; then windows on long histories."""
    generator = np.random.default_rng(1)
    lengths = np.clip(generator.lognormal(4.6, 0.9, NUM_HISTORIES).astype(np.int64), 18, MAX_HISTORY)
    plain = _work(lengths, AttentionConfig(num_heads=NUM_HEADS))
    for name, settings in FORMS.items():
        form = _work(lengths, AttentionConfig.model_validate({"num_heads": NUM_HEADS, **settings}))
        yield take_turns(
            f"attention, {name}", "events/s", float(lengths.sum()), form, plain, "fused softmax, same buckets", turns
        )
    for length in (1024, 4096, 8192):
        lengths = np.full(LONG_EVENTS // length, length)
        windowed = _work(lengths, AttentionConfig(num_heads=NUM_HEADS, window=WINDOW))
        whole = _work(lengths, AttentionConfig(num_heads=NUM_HEADS))
        yield take_turns(
            f"attention, histories of {length:,}, window of {WINDOW}",
            "events/s",
            float(lengths.sum()),
            windowed,
            whole,
            "fused softmax over all of each history",
            turns,
        )


def _work(lengths: np.ndarray, config: AttentionConfig) -> Callable[[], object]:
    """Return one forward and backward pass over ready queries, keys and values."""
    layout = layout_of(np.concatenate(([0], np.cumsum(lengths))))
    times = torch.arange(layout.num_events) * 3600
    longest = int(lengths.max())
    parts = AttentionTerms(
        config,
        HEAD_WIDTH**-0.5,
        longest,
        PositionBias("exact", NUM_HEADS, longest, bidirectional=False) if config.uses_position else None,
        TimeBias("bucketed", NUM_HEADS) if config.uses_time else None,
        threshold=round(256 * config.dropout),
    )
    q, k, v = (torch.randn(layout.num_events, NUM_HEADS, HEAD_WIDTH, requires_grad=True) for _ in range(3))

    def run() -> None:
        # The context is made again, since it is made for each batch.
        attended = attend(q, k, v, AttentionContext(layout, times, times), parts)
        attended.output.sum().backward()

    return run
