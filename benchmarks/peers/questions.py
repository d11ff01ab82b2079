"""Questions of the comparison with other tools: models and objectives, sides, and the ratios to reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CORES = 2
BATCH, LENGTH, DROPOUT = 128, 200, 0.2
WIDTH, PEERS_WIDTH = 52, 50  # rows of a table of fbgemm have a multiple of four numbers
STEPS, WARM_UP = 24, 6
RUNS = {"2 workers": (2, 1, False), "1 worker of 2 threads": (1, 2, False), "2 workers, compiled kernels": (2, 1, True)}
"""Shoal's runs by name: workers, threads of each, compiled kernels."""


@dataclass(frozen=True)
class Question:
    """A model and objective that Shoal and another tool train."""

    encoder: Mapping[str, Any]
    """Settings of Shoal's encoder."""
    objective: Mapping[str, Any]
    """Settings of Shoal's objective."""
    peers: Mapping[str, tuple[str, tuple[str, ...]]]
    """Programs and arguments of the other tools, by name."""
    goal: float
    """The ratio to reach: Shoal's two workers, compared with the fastest form of the other tool."""


SASREC = {"kind": "sasrec", "num_blocks": 2, "feed_forward_multiple": 1, "dropout": DROPOUT}
HSTU = {"kind": "hstu", "num_blocks": 2, "dropout": DROPOUT, "attention": {"num_heads": 1, "bias": "position"}}
NEGATIVES = {"kind": "sampled_softmax", "num_negatives": 128}
QUESTIONS = {
    "SASRec, 128 shared negatives": Question(
        {**SASREC, "attention": {"num_heads": 1}},
        NEGATIVES,
        {
            "RePlay": ("replay_sasrec", ("--negatives", "128")),
            "RePlay, length buckets": ("replay_sasrec", ("--negatives", "128", "--buckets")),
        },
        5.0,
    ),
    "SASRec, full cross-entropy": Question(
        {**SASREC, "attention": {"num_heads": 1}},
        {"kind": "full_softmax"},
        {
            "RePlay": ("replay_sasrec", ("--negatives", "0")),
            "RePlay, length buckets": ("replay_sasrec", ("--negatives", "0", "--buckets")),
        },
        5.0,
    ),
    "HSTU, 128 negatives": Question(HSTU, NEGATIVES, {"RecTools": ("rectools_hstu", ("--negatives", "128"))}, 12.0),
}
