"""Event logs with planted structure and their ground truth: for demos, tests and measurements.

This is no simulation of people: every regularity in the logs is planted, and truth/ describes it. The next event of a
user comes from one of three sources:

    patterns     a cause, when it occurs, makes its effect follow some events later; both occur in no other way, so that
                 every effect has exactly one cause, and truth/causes-*.parquet names it
    transitions  a successor of the previous item, from a sparse item-to-item table
    taste        a category that the user likes at present, then an item by popularity and nearness to the taste

Invariant: the bytes of a file depend on (config, index of the file) alone. Files may be generated in any order, on any
machine. No item occurs twice in one history, because evaluation masks seen items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.synthetic.folder import LogKind, write_log, write_table
from trainer.data.synthetic.world import MIN_EVENTS, Ints, Longs, SyntheticConfig, SyntheticWorld, build_world, unit

__all__ = [
    "EVENTS",
    "BlockMaker",
    "BlockSummary",
    "SyntheticConfig",
    "SyntheticSummary",
    "SyntheticWorld",
    "build_world",
    "generate",
    "generate_block",
]

_BLOCK_STREAM = 1  # keeps the random numbers of blocks apart from those of the world
_NUM_CANDIDATES = 3  # items drawn by popularity, from which taste chooses


@dataclass(frozen=True)
class BlockSummary:
    """One file of the log."""

    block_index: int
    num_events: int
    num_causes: int
    num_effects: int


@dataclass(frozen=True)
class SyntheticSummary:
    """A finished log."""

    num_users: int
    num_items: int
    num_events: int
    num_causes: int
    num_effects: int
    num_files: int


BlockMaker = Callable[[SyntheticConfig, SyntheticWorld, Path], Iterator[BlockSummary]]


def generate(
    config: SyntheticConfig,
    folder: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
    make_blocks: BlockMaker | None = None,
) -> SyntheticSummary:
    """Write events-*.parquet and truth/ into `folder`, and truth/truth.json last.

    The log has the columns user_id, item_id, time (int64, unix seconds) and category (int32), ordered by time within a
    file. A folder with the same finished log is left unchanged.

    Args:
        config: settings of the log.
        folder: output folder.
        on_progress: called with the finished files and all files.
        make_blocks: generates the blocks; by default all in this process, in order.

    Raises:
        UserError: if the folder holds anything else, or cannot be written.
    """
    summary: SyntheticSummary = write_log(
        EVENTS, config, Path(folder), on_progress, make_blocks or EVENTS.blocks_one_by_one
    )
    return summary


def _summarize(config: SyntheticConfig, blocks: Sequence[BlockSummary]) -> SyntheticSummary:
    return SyntheticSummary(
        num_users=config.num_users,
        num_items=config.num_items,
        num_events=sum(block.num_events for block in blocks),
        num_causes=sum(block.num_causes for block in blocks),
        num_effects=sum(block.num_effects for block in blocks),
        num_files=len(blocks),
    )


def generate_block(
    config: SyntheticConfig, world: SyntheticWorld, block_index: int, folder: str | Path
) -> BlockSummary:
    """Write one file of the log and the causes of its effects: the users from block_index * users_per_file on."""
    folder = Path(folder)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([config.seed, _BLOCK_STREAM, block_index])
    first_user = block_index * config.users_per_file
    lengths = _draw_lengths(config, min(config.users_per_file, config.num_users - first_user), rng)
    # Longest first, so that the users still active at a step are a prefix, and every array is cut by a slice.
    order = np.argsort(-lengths, kind="stable")
    lengths = lengths[order]
    user_ids = first_user + order
    active = np.searchsorted(-lengths, -np.arange(lengths[0]), side="left")
    history, causes = _draw_histories(config, world, active, rng)
    # One row per event, by position and then by user.
    row_start = np.cumsum(active) - active
    position = np.repeat(np.arange(active.size), active)
    user = np.arange(position.size) - row_start[position]
    item = history[position, user].astype(np.int64)
    user_id = user_ids[user]
    time = _draw_times(config, lengths, active, position, user, rng)
    # Time and row in one number: sorting values is faster than argsort, and breaks ties by row.
    row_bits = int(time.size).bit_length()
    in_time = np.sort(((time - config.start_time) << row_bits) | np.arange(time.size)) & ((1 << row_bits) - 1)
    events: dict[str, NDArray[Any]] = {
        "user_id": user_id[in_time],
        "item_id": item[in_time],
        "time": time[in_time],
        "category": world.item_category[item[in_time]],
    }
    write_table(pa.table(events), _events_path(folder, block_index))
    effect_row = np.flatnonzero(causes[position, user] >= 0)
    cause_row = row_start[causes[position, user][effect_row]] + user[effect_row]
    truth: dict[str, NDArray[Any]] = {
        "user_id": user_id[effect_row],
        "effect_time": time[effect_row],
        "effect_item": item[effect_row],
        "cause_item": item[cause_row],
        "cause_time": time[cause_row],
    }
    write_table(pa.table(truth), _causes_path(folder, block_index))
    return BlockSummary(block_index, item.size, int(np.isin(item, world.cause).sum()), effect_row.size)


def _draw_lengths(config: SyntheticConfig, num_users: int, rng: np.random.Generator) -> Longs:
    """Draw the events per user: the minimum plus a negative binomial, with a long tail as in real logs."""
    extra = rng.poisson(rng.gamma(2.0, (config.mean_events_per_user - MIN_EVENTS) / 2.0, num_users))
    return np.minimum(MIN_EVENTS + extra, config.max_events_per_user).astype(np.int64)


def _draw_times(
    config: SyntheticConfig, lengths: Longs, active: Longs, position: Longs, user: Longs, rng: np.random.Generator
) -> Longs:
    """Draw the Unix seconds of each row, strictly rising for each user.

    Gaps are squared exponentials: bursts with long pauses between them. Each user joins in the first half.
    """
    clock = np.zeros(lengths.size)
    elapsed = [clock.copy()]
    for num in active[1:]:
        clock[:num] += rng.standard_exponential(num, np.float32) ** 2
        elapsed.append(clock[:num].copy())
    joined = rng.random(lengths.size) * config.time_span_seconds / 2
    # One second per event is reserved here and added back as `position`, which makes the times rise strictly.
    pace = (config.time_span_seconds - 1 - lengths - joined) / np.maximum(clock, 1e-6)
    return config.start_time + (joined[user] + np.concatenate(elapsed) * pace[user]).astype(np.int64) + position


def _draw_histories(
    config: SyntheticConfig, world: SyntheticWorld, active: Longs, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Draw the items [positions, users] and, for effects, the position of their cause (else -1).

    `active` [positions] is the number of users with an event at each position; they are the first ones.
    """
    num_users = int(active[0])
    history = np.empty((active.size, num_users), np.int32)
    causes = np.full((active.size, num_users), -1, np.int32)
    due = _DueEffects(config, world, num_users)
    tastes = _Tastes(config, world, num_users, rng)
    # Due effects come first, so the other rates are shares of the remaining events.
    left = 1.0 - config.pattern_share
    cause_rate = config.pattern_share / config.pattern_probability / left
    transition_rate = config.transition_share / left
    for position, num in enumerate(active):
        seen = history[:position]
        item, causes[position, :num] = due.take(position, num)
        source = np.where(item >= 0, np.float32(2.0), rng.random(num, dtype=np.float32))
        rows = np.flatnonzero(source < cause_rate)
        item[rows] = _first_unseen(world.cause[rng.integers(world.cause.size, size=(2, rows.size))], seen, rows)
        due.plan(position, rows[item[rows] >= 0], item, rng)
        if position:
            rows = np.flatnonzero((source >= cause_rate) & (source < cause_rate + transition_rate))
            item[rows] = _first_unseen(_draw_transitions(world, history[position - 1, rows], rng), seen, rows)
        rows = np.flatnonzero(item < 0)
        item[rows] = tastes.draw(rows, seen, rng)
        history[position, :num] = item
        tastes.drift(num, rng)
    return history, causes


def _draw_transitions(world: SyntheticWorld, previous: Ints, rng: np.random.Generator) -> Ints:
    """Draw two successors [2, rows] of the previous item: the second is used if the first has been seen."""
    bounds = np.cumsum(world.successor_probability)[:-1]
    return world.successor[previous, np.searchsorted(bounds, rng.random((2, previous.size)), side="right")]


def _unseen(candidates: Ints, seen: Ints, rows: Longs) -> NDArray[np.bool_]:
    """Return which candidates [candidates, rows] are not among the items seen [positions, users] by the users `rows`."""
    own = seen[:, rows]
    return np.stack([~(own == candidate).any(axis=0) for candidate in candidates])


def _first_unseen(candidates: Ints, seen: Ints, rows: Longs) -> Ints:
    """Return for each of the users `rows` the first candidate not yet seen, or -1."""
    unseen = _unseen(candidates, seen, rows)
    return np.where(unseen.any(axis=0), candidates[unseen.argmax(axis=0), np.arange(rows.size)], np.int32(-1))


class _DueEffects:
    """Planned effects: a ring buffer over positions, with at most one effect per user and position."""

    def __init__(self, config: SyntheticConfig, world: SyntheticWorld, num_users: int) -> None:
        self._probability = config.pattern_probability
        self._shortest = config.pattern_min_lag
        self._num_lags = config.pattern_max_lag - config.pattern_min_lag + 1
        self._ring = config.pattern_max_lag + 1
        self._effect = np.full((self._ring, num_users), -1, np.int32)
        self._cause_position = np.full((self._ring, num_users), -1, np.int32)
        self._effect_of = np.full(config.num_items, -1, np.int32)
        self._effect_of[world.cause] = world.effect

    def take(self, position: int, num: int) -> tuple[Ints, Ints]:
        """Remove and return the effects due now and the positions of their causes, -1 without an effect."""
        slot = position % self._ring
        taken = self._effect[slot, :num].copy(), self._cause_position[slot, :num].copy()
        self._effect[slot] = self._cause_position[slot] = -1
        return taken

    def plan(self, position: int, rows: Longs, item: Ints, rng: np.random.Generator) -> None:
        """Plan the effects of the causes item[rows], each with its probability and after a random lag."""
        rows = rows[rng.random(rows.size) < self._probability]
        lag = rng.integers(self._num_lags, size=rows.size)
        for _ in range(self._num_lags):  # where another effect is due, the next lag is tried
            slot = (position + self._shortest + lag) % self._ring
            vacant = self._effect[slot, rows] < 0
            self._effect[slot[vacant], rows[vacant]] = self._effect_of[item[rows[vacant]]]
            self._cause_position[slot[vacant], rows[vacant]] = position
            rows = rows[~vacant]
            lag = (lag[~vacant] + 1) % self._num_lags


class _Tastes:
    """The users' current tastes. Each stays near the user's home taste, drawn towards one category at a time.

    Products use einsum, never BLAS, which may round differently with another number of threads and change bytes.
    """

    def __init__(
        self, config: SyntheticConfig, world: SyntheticWorld, num_users: int, rng: np.random.Generator
    ) -> None:
        self._config = config
        self._world = world
        self._home = unit(rng.standard_normal((num_users, config.latent_width), dtype=np.float32))
        self._taste = np.empty_like(self._home)
        self._category_bounds = np.empty((config.num_categories, num_users), np.float32)
        self._move(np.arange(num_users), rng)

    def drift(self, num: int, rng: np.random.Generator) -> None:
        """Move the interest of some of the first `num` users to another category."""
        self._move(np.flatnonzero(rng.random(num, dtype=np.float32) < self._config.taste_drift), rng)

    def _move(self, rows: Longs, rng: np.random.Generator) -> None:
        world = self._world
        interest = rng.integers(self._config.num_categories, size=rows.size)
        self._taste[rows] = taste = unit(self._home[rows] + world.category_centre[interest])
        liking = np.einsum("cw,rw->cr", world.category_centre, taste)
        mass = np.diff(world.cumulative_popularity[world.category_start])[:, None]
        bounds = np.cumsum(mass * np.exp(self._config.taste_strength * (liking - 1.0)), axis=0)
        self._category_bounds[:, rows] = bounds / bounds[-1]

    def draw(self, rows: Longs, seen: Ints, rng: np.random.Generator) -> Ints:
        """Draw an unseen item for each of the users `rows`: candidates by popularity within a category, chosen by taste."""
        world = self._world
        category = (self._category_bounds[:, rows] <= rng.random(rows.size, dtype=np.float32)).sum(axis=0)
        first, last = world.category_start[category], world.category_start[category + 1]
        low, high = world.cumulative_popularity[first], world.cumulative_popularity[last]
        point = low + rng.random((_NUM_CANDIDATES, rows.size)) * (high - low)
        place = np.searchsorted(world.cumulative_popularity, point, side="right") - 1
        candidates = world.free_items[np.clip(place, first, last - 1)]
        liking = np.einsum("rw,krw->kr", self._taste[rows], world.item_latent[candidates])
        # Gumbel noise makes the largest a draw from the softmax of the likings.
        noise = -np.log(np.maximum(rng.standard_exponential(liking.shape, np.float32), np.float32(1e-30)))
        unseen = _unseen(candidates, seen, rows)
        best = np.where(unseen, self._config.taste_strength * liking + noise, -np.inf).argmax(axis=0)
        chosen = np.where(unseen.any(axis=0), candidates[best, np.arange(rows.size)], np.int32(-1))
        # Users who have seen all candidates get any free item. At most half of these are seen, so few rounds suffice.
        while (again := np.flatnonzero(chosen < 0)).size:
            candidates = world.free_items[rng.integers(world.free_items.size, size=(_NUM_CANDIDATES, again.size))]
            chosen[again] = _first_unseen(candidates, seen, rows[again])
        return chosen


def _write_world(config: SyntheticConfig, world: SyntheticWorld, folder: Path) -> None:
    ids = np.arange(config.num_items)
    latent = pa.FixedSizeListArray.from_arrays(pa.array(world.item_latent.ravel()), config.latent_width)
    items = [pa.array(ids), pa.array(world.item_category), pa.array(world.item_popularity), latent]
    write_table(pa.table(items, names=["item_id", "category", "popularity", "latent"]), folder / "items.parquet")
    patterns: dict[str, NDArray[Any]] = {
        "cause_item": world.cause.astype(np.int64),
        "effect_item": world.effect.astype(np.int64),
        "probability": np.full(config.num_patterns, config.pattern_probability),
        "min_lag": np.full(config.num_patterns, config.pattern_min_lag, np.int32),
        "max_lag": np.full(config.num_patterns, config.pattern_max_lag, np.int32),
    }
    write_table(pa.table(patterns), folder / "patterns.parquet")
    transitions: dict[str, NDArray[Any]] = {  # a pair may occur twice; its probabilities add up
        "item_id": np.repeat(ids, config.num_successors),
        "next_item_id": world.successor.ravel().astype(np.int64),
        "probability": np.tile(world.successor_probability, config.num_items),
    }
    write_table(pa.table(transitions), folder / "transitions.parquet")


def _events_path(folder: Path, block_index: int) -> Path:
    return folder / f"events-{block_index:05d}.parquet"


def _causes_path(folder: Path, block_index: int) -> Path:
    return folder / "truth" / f"causes-{block_index:05d}.parquet"


EVENTS = LogKind(
    format_version=1,
    build_world=build_world,
    write_world=_write_world,
    generate_block=generate_block,
    summarize=_summarize,
    summary_type=SyntheticSummary,
    files=lambda index: [f"events-{index:05d}.parquet", f"truth/causes-{index:05d}.parquet"],
)
