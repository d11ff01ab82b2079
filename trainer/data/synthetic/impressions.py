"""Synthetic logs of impressions with known probabilities of a click and of a conversion.

A user sees slates of several items at one time. Probabilities depend on the user's clicks before that time, and on
nothing later:

    logit P(click)              = offset + quality of the item + liking of the user's segment for its category
                                  + weight of the device + weight per place down the slate
                                  + same_weight x share of the last `window` clicks that are of its category
                                  + leading_weight x share of them that are of the category that leads to its category
    logit P(conversion | click) = offset + price_weight x price of the item
                                  + conversion_same_weight x share of the last `window` clicks that are of its category

Shares are of `window`, even if there were fewer clicks. So a model can know both probabilities exactly if it sees the
last `window` clicks, the features of items, users and impressions, and the ids of items. The log has both probabilities
as columns, which are outcomes and no features. Invariant: the bytes of a file depend on (config, index of the file)
alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.synthetic.folder import LogKind, write_log, write_table
from trainer.data.synthetic.impression_world import ImpressionConfig, ImpressionWorld, build_impression_world
from trainer.data.synthetic.world import Doubles, Ints, Longs

_BLOCK_STREAM = 3  # keeps the random numbers of blocks apart from those of worlds


@dataclass(frozen=True)
class ImpressionBlock:
    """One file of the log."""

    block_index: int
    num_impressions: int
    num_clicks: int
    num_conversions: int


@dataclass(frozen=True)
class ImpressionSummary:
    """A finished log."""

    num_users: int
    num_items: int
    num_impressions: int
    num_clicks: int
    num_conversions: int
    num_files: int


def generate_impressions(
    config: ImpressionConfig,
    folder: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
    make_blocks: Callable[[ImpressionConfig, ImpressionWorld, Path], Iterator[ImpressionBlock]] | None = None,
) -> ImpressionSummary:
    """Write impressions-*.parquet, users-*.parquet, items.parquet and truth/ into `folder`, and truth/truth.json last.

    Impressions have user_id, item_id, time (unix seconds), position, device, click, conversion, click_probability and
    conversion_probability (given a click), ordered by time within a file. Arguments, result and errors are as in
    trainer.data.synthetic.log.generate.
    """
    summary: ImpressionSummary = write_log(
        IMPRESSIONS, config, Path(folder), on_progress, make_blocks or IMPRESSIONS.blocks_one_by_one
    )
    return summary


def generate_impression_block(
    config: ImpressionConfig, world: ImpressionWorld, block_index: int, folder: str | Path
) -> ImpressionBlock:
    """Write one file of impressions and of users: the users from block_index * users_per_file on."""
    rng = np.random.default_rng([config.seed, _BLOCK_STREAM, block_index])
    first_user = block_index * config.users_per_file
    count = min(config.users_per_file, config.num_users - first_user)
    segment = rng.integers(config.num_segments, size=count).astype(np.int32)
    # Most slates first, so that the users still active at a step are a prefix.
    num_slates = _draw_slate_counts(config, count, rng)
    order = np.argsort(-num_slates, kind="stable")
    active = np.searchsorted(-num_slates[order], -np.arange(num_slates.max()), side="left")
    shown = _show(config, world, segment[order], active, rng)
    time = _draw_times(config, num_slates[order], active, rng)
    user = np.concatenate([order[:num] for num in active])
    size = config.slate_size
    columns: dict[str, NDArray[Any]] = {
        "user_id": np.repeat(first_user + user, size),
        "item_id": shown.item.astype(np.int64),
        "time": np.repeat(time, size),
        "position": np.tile(np.arange(size, dtype=np.int32), user.size),
        "device": np.repeat(shown.device, size),
        "click": shown.click.astype(np.int8),
        "conversion": shown.conversion.astype(np.int8),
        "click_probability": shown.click_probability,
        "conversion_probability": shown.conversion_probability,
    }
    # Clicks of one slate become events in the order of their places.
    in_time = np.lexsort((columns["position"], columns["user_id"], columns["time"]))
    folder = Path(folder)
    write_table(
        pa.table({name: values[in_time] for name, values in columns.items()}), folder / _impressions(block_index)
    )
    write_table(pa.table({"user_id": first_user + np.arange(count), "segment": segment}), folder / _users(block_index))
    return ImpressionBlock(block_index, shown.item.size, int(shown.click.sum()), int(shown.conversion.sum()))


def _impressions(block_index: int) -> str:
    return f"impressions-{block_index:05d}.parquet"


def _users(block_index: int) -> str:
    return f"users-{block_index:05d}.parquet"


def _draw_slate_counts(config: ImpressionConfig, count: int, rng: np.random.Generator) -> Longs:
    """Draw the slates of each user: at least two, negative binomial, with a long tail as in real logs."""
    mean = config.mean_impressions_per_user / config.slate_size
    extra = rng.poisson(rng.gamma(2.0, max(0.0, mean - 2) / 2.0, count))
    return np.minimum(2 + extra, config.max_slates_per_user).astype(np.int64)


def _draw_times(config: ImpressionConfig, num_slates: Longs, active: Longs, rng: np.random.Generator) -> Longs:
    """Draw the time of each slate, by step and then by user: strictly rising per user, who joins in the first half."""
    count = num_slates.size
    joined = rng.random(count) * config.time_span_seconds / 2
    # Sums of exponentials over their total are sorted uniform numbers.
    gaps = rng.standard_exponential((active.size + 1, count))
    gaps[np.arange(active.size + 1)[:, None] > num_slates[None, :]] = 0.0
    elapsed = np.cumsum(gaps, axis=0)
    share = elapsed[:-1] / elapsed[-1]
    # One second per slate is reserved here and added back as the step, which makes the times rise strictly.
    room = config.time_span_seconds - 1 - num_slates - joined
    steps = [(joined[:num] + share[step, :num] * room[:num]).astype(np.int64) + step for step, num in enumerate(active)]
    return config.start_time + np.concatenate(steps)


@dataclass(frozen=True)
class _Shown:
    """Impressions by step, then user, then place in the slate; device by step and user."""

    item: Ints
    device: Ints
    click: NDArray[np.bool_]
    conversion: NDArray[np.bool_]
    click_probability: Doubles
    conversion_probability: Doubles


def _show(
    config: ImpressionConfig, world: ImpressionWorld, segment: Ints, active: Longs, rng: np.random.Generator
) -> _Shown:
    """Draw slate after slate, each depending on the clicks in earlier ones."""
    recent = _Recent(config.window, segment.size)
    steps = []
    for num in active:
        item = _draw_slates(config, world, recent, int(num), rng)
        device = rng.integers(config.num_devices, size=num).astype(np.int32)
        click_logit, conversion_logit = logits(config, world, item, segment[:num], device, recent.categories[:, :num])
        chance = _sigmoid(click_logit)
        conversion_chance = _sigmoid(conversion_logit)
        click = rng.random(item.shape) < chance
        conversion = click & (rng.random(item.shape) < conversion_chance)
        recent.add(world.item_category[item], click)
        steps.append((item, device, click, conversion, chance, conversion_chance))
    return _Shown(*(np.concatenate([values.reshape(-1) for values in column]) for column in zip(*steps, strict=True)))


def logits(
    config: ImpressionConfig, world: ImpressionWorld, item: Ints, segment: Ints, device: Ints, recent: Ints
) -> tuple[Doubles, Doubles]:
    """Return the logits of a click and of a conversion after it, [users, slate] each. They define the whole log.

    Args:
        config: settings of the log.
        world: its world.
        item: [users, slate] in the order in which they are shown.
        segment: [users].
        device: [users].
        recent: [window, users] categories of the last clicks before, in any order; -1 without a click.
    """
    category = world.item_category[item]
    same = (recent[:, :, None] == category[None]).sum(axis=0) / config.window
    led_to = np.append(world.leads_to, -2)[recent]  # -1, where there is no click, is the last entry
    leading = (led_to[:, :, None] == category[None]).sum(axis=0) / config.window
    click = (
        config.click_offset
        + world.item_quality[item]
        + world.segment_liking[segment[:, None], category]
        + world.device_weight[device][:, None]
        + config.position_weight * np.arange(item.shape[1])
        + config.same_weight * same
        + config.leading_weight * leading
    )
    conversion = (
        config.conversion_offset + config.price_weight * world.item_price[item] + config.conversion_same_weight * same
    )
    return click, conversion


def _sigmoid(logit: Doubles) -> Doubles:
    chance: Doubles = 1.0 / (1.0 + np.exp(-logit))
    return chance


class _Recent:
    """The categories of each user's last clicks: a ring buffer."""

    def __init__(self, window: int, num_users: int) -> None:
        self.categories = np.full((window, num_users), -1, np.int32)
        self._clicks = np.zeros(num_users, np.int64)

    def add(self, category: Ints, click: NDArray[np.bool_]) -> None:
        """Add the clicks of a slate, in the order of its places; both [users, slate] of the first users."""
        for place in range(click.shape[1]):
            users = np.flatnonzero(click[:, place])
            self.categories[self._clicks[users] % len(self.categories), users] = category[users, place]
            self._clicks[users] += 1

    def one_of(self, num: int, rng: np.random.Generator) -> Ints:
        """Draw a category that each of the first users clicked recently; -1 if there is none."""
        held = np.minimum(self._clicks[:num], len(self.categories))
        place = (rng.random(num) * held).astype(np.int64)
        return self.categories[place, np.arange(num)]


def _draw_slates(
    config: ImpressionConfig, world: ImpressionWorld, recent: _Recent, num: int, rng: np.random.Generator
) -> Ints:
    """Draw distinct items for each of the first users: by popularity, in a recently clicked category or in any."""
    item = np.empty((num, config.slate_size), np.int32)
    for place in range(config.slate_size):
        category = np.where(rng.random(num) < config.follow_share, recent.one_of(num, rng), -1)
        first = np.where(category >= 0, world.category_start[category], 0)
        stop = np.where(category >= 0, world.category_start[category + 1], config.num_items)
        low, high = world.cumulative_popularity[first], world.cumulative_popularity[stop]
        at = np.searchsorted(world.cumulative_popularity, low + rng.random(num) * (high - low), side="right") - 1
        drawn = world.by_category[np.clip(at, first, stop - 1)]
        # An item that is already in the slate is replaced by the next number.
        while (again := (item[:, :place] == drawn[:, None]).any(axis=1)).any():
            drawn = np.where(again, (drawn + 1) % config.num_items, drawn)
        item[:, place] = drawn
    return item


def _write_world(config: ImpressionConfig, world: ImpressionWorld, folder: Path) -> None:
    ids = pa.array(np.arange(config.num_items))
    items = {"item_id": ids, "category": world.item_category, "price": world.item_price}
    write_table(pa.table(items), folder.parent / "items.parquet")
    write_table(pa.table({**items, "quality": world.item_quality}), folder / "items.parquet")
    liking = pa.FixedSizeListArray.from_arrays(pa.array(world.segment_liking.T.ravel()), config.num_segments)
    categories = {"category": np.arange(config.num_categories), "leads_to": world.leads_to, "segment_liking": liking}
    write_table(pa.table(categories), folder / "categories.parquet")
    devices = {"device": np.arange(config.num_devices), "weight": world.device_weight}
    write_table(pa.table(devices), folder / "devices.parquet")


def _summarize(config: ImpressionConfig, blocks: Sequence[ImpressionBlock]) -> ImpressionSummary:
    return ImpressionSummary(
        num_users=config.num_users,
        num_items=config.num_items,
        num_impressions=sum(block.num_impressions for block in blocks),
        num_clicks=sum(block.num_clicks for block in blocks),
        num_conversions=sum(block.num_conversions for block in blocks),
        num_files=len(blocks),
    )


IMPRESSIONS = LogKind(
    format_version=1,
    build_world=build_impression_world,
    write_world=_write_world,
    generate_block=generate_impression_block,
    summarize=_summarize,
    summary_type=ImpressionSummary,
    files=lambda index: [_impressions(index), _users(index)],
)
