"""Rows and gradients sent as fp16 and as fp32: rows per second, bytes, and what the rounding does to rows and to training."""

import torch

from benchmarks.measure import Comparison, take_turns
from benchmarks.sharded_lookup import bytes_sent, drawn_batches, sharded_table, together
from sharding.config import CommunicationConfig
from sharding.world import World
from trainer.config.job import Channel

NUM_ROWS = 1_000_000
FP16 = CommunicationConfig(forward="fp16", backward="fp16")
HALF_ULP = 2.0**-11  # the largest relative error of a number rounded to fp16


def compare(argument: tuple[int, int], world: World, channel: Channel) -> list[Comparison]:
    """Measure on every rank. argument: (rows of the table, turns). Figures are of all ranks, errors of the first one's rows."""
    num_rows, turns = argument
    half, whole = sharded_table(num_rows, world, FP16), sharded_table(num_rows, world)
    ids = list(drawn_batches("uniform", num_rows, world.rank))
    share = -(-num_rows // world.world_size)
    found = [_difference(half(batch, False), whole(batch, False)) for batch in ids]
    for batch in ids:
        half(batch, True)
        whole(batch, True)
    trained = [_difference(half(batch, False), whole(batch, False)) for batch in ids]
    sent = [bytes_sent(work, ids, share, world)[0] for work in (half, whole)]
    amount = float(sum(world.gather_ints(sum(batch.numel() for batch in ids))))
    name, bound = f"fp16 between {world.world_size} workers", "half a unit in the last place of fp16"
    return [
        take_turns(
            f"{name}, look up and update",
            "rows/s",
            amount,
            together(half, ids, True, world),
            together(whole, ids, True, world),
            "fp32",
            turns,
        ),
        Comparison(f"{name}, sent in a step", "bytes", (sent[0],), (sent[1],), "fp32"),
        Comparison(f"{name}, rows looked up", "x 1e-9 of their norm", (1e9 * max(found),), (1e9 * HALF_ULP,), bound),
        Comparison(
            f"{name}, rows trained once", "x 1e-9 of their norm", (1e9 * max(trained),), (1e9 * HALF_ULP,), bound
        ),
    ]


def _difference(rows: torch.Tensor, exact: torch.Tensor) -> float:
    return float((rows - exact).norm() / exact.norm())
