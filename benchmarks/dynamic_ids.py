"""Dynamic ids on one core and a table full of 10^6 ids: looked up and observed, compared with bare numpy on the same ids."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Comparison, take_turns
from sharding.config import DynamicIdsConfig
from sharding.dynamic_ids.id_counts import count_ids
from sharding.dynamic_ids.mapping import observe
from sharding.dynamic_ids.state import DynamicIdsState, look_up, new_state

NUM_ROWS = 1_000_001
BATCH_EVENTS = 50_000
NUM_LOOKED_UP = 1_000_000
NUM_BATCHES = 10
SPREAD = 0x1E3779B97F4A7C15  # makes ids of numbers spread over all of int64


def compare(turns: int) -> list[Comparison]:
    state = _full_state()
    rng = np.random.default_rng(1)
    asked = rng.permutation(NUM_ROWS - 1)[:NUM_LOOKED_UP] * np.int64(SPREAD)
    rows = look_up(state, asked).rows
    table = np.arange(NUM_ROWS)
    ordered = np.sort(state.entries.ids[state.entries.used(with_row=True)])
    # Each turn observes batches that are new to the state; the ceiling then counts the same ones.
    turn_batches = [[_batch(rng, NUM_BATCHES * turn + n) for n in range(NUM_BATCHES)] for turn in range(turns + 1)]
    observed, counted = iter(turn_batches), iter(turn_batches)

    def observe_batches() -> None:
        for batch in next(observed):
            observe(state, count_ids(batch))

    def count_batches() -> None:
        for batch in next(counted):
            np.unique(batch, return_counts=True)

    name = "dynamic ids, look up"
    return [
        take_turns(
            name,
            "ids/s",
            asked.size,
            lambda: look_up(state, asked),
            lambda: table[rows],
            "bare gather of known rows",
            turns,
        ),
        take_turns(
            name,
            "ids/s",
            asked.size,
            lambda: look_up(state, asked),
            lambda: np.searchsorted(ordered, asked),
            "numpy searchsorted, no ceiling but the plain way",
            turns,
        ),
        take_turns(
            "dynamic ids, count and observe",
            "events/s",
            NUM_BATCHES * BATCH_EVENTS,
            observe_batches,
            count_batches,
            "numpy unique of the same batches",
            turns,
        ),
    ]


def _full_state() -> DynamicIdsState:
    config = DynamicIdsConfig(num_rows=NUM_ROWS, admit_after=2, max_age_steps=1, max_candidates=NUM_ROWS)
    state = new_state(config)
    for numbers in np.array_split(np.arange(NUM_ROWS - 1), 20):
        observe(state, count_ids(np.repeat(numbers, 2) * np.int64(SPREAD)))
    return state


def _batch(rng: np.random.Generator, number: int) -> NDArray[np.int64]:
    """Return a batch of ids, skewed over those that have rows.

    One event in ten has an id that occurs twice, in this batch and the next: it is a candidate first, then evicts another.
    """
    numbers = (NUM_ROWS * rng.random(BATCH_EVENTS) ** 4).astype(np.int64)
    num_new = BATCH_EVENTS // 20
    numbers[: 2 * num_new] = NUM_ROWS + number * num_new + np.arange(2 * num_new)
    return numbers * np.int64(SPREAD)
