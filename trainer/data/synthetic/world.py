"""Settings of a synthetic log, and the world that its users share: items, axes of taste, transitions, patterns.

See trainer/data/synthetic/log.py for its use. Invariant: the world is a function of the config alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

_WORLD_STREAM = 0  # keeps its random numbers apart from those of the blocks
MIN_EVENTS = 5  # enough for a leave-one-out split and something to learn from
_LONGEST_OVER_MEAN = 5  # the longest history in units of the mean; bounds the number of time steps
_ITEM_SPREAD = 0.5  # distance of items from the centre of their category, which has length 1

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class SyntheticConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Settings of a log of events. Shares are shares of all events. Taste drives the events that patterns and transitions leave."""

    num_users: int = Field(5_000, ge=1, description="number of users")
    num_items: int = Field(1_000, ge=20, le=2**31 - 1, description="number of items. Ids are 0 to num_items - 1")
    mean_events_per_user: float = Field(
        40.0, ge=MIN_EVENTS, description=f"mean length of a history in events; the shortest has {MIN_EVENTS}"
    )
    num_categories: int = Field(20, ge=2, description="number of item categories")
    latent_width: int = Field(16, ge=2, le=1024, description="width of the latent vector of an item or a taste")
    taste_strength: float = Field(
        10.0, ge=0.0, description="factor of the product of taste and latent vector. 0 leaves only popularity"
    )
    taste_drift: float = Field(0.05, ge=0.0, le=1.0, description="probability per event that a user's interest changes")
    popularity_skew: float = Field(
        1.0,
        ge=0.0,
        le=3.0,
        description="Zipf exponent: the weight of the k-th most popular item is k to the power of minus this",
    )
    transition_share: float = Field(
        0.40, ge=0.0, le=1.0, description="share of events that are successors of the previous item"
    )
    num_successors: int = Field(
        3, ge=1, le=64, description="number of successors of each item. Each is half as likely as the one before"
    )
    pattern_share: float = Field(0.12, ge=0.0, le=0.5, description="share of events that are effects of a cause")
    num_patterns: int = Field(50, ge=1, description="number of pairs of a cause and its effect")
    pattern_probability: float = Field(0.85, gt=0.0, le=1.0, description="probability that a cause has its effect")
    pattern_min_lag: int = Field(
        1, ge=1, description="minimum number of events from a cause to its effect (1: the next event)"
    )
    pattern_max_lag: int = Field(5, ge=1, description="maximum number of events from a cause to its effect")
    seed: int = Field(1, ge=0, description="seed of everything random")
    users_per_file: int = Field(10_000, ge=1, description="number of users per file, which bounds the memory of a task")
    start_time: int = Field(1_700_000_000, ge=0, le=2**40, description="time of the earliest events, in Unix seconds")
    time_span_seconds: int = Field(90 * 86_400, ge=1, le=2**31, description="duration of the whole log, in seconds")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "SyntheticConfig":
        free = self.num_items - 2 * self.num_patterns
        if free < self.num_categories:
            raise ValueError(
                f"num_items = {self.num_items} must be at least 2 x num_patterns + num_categories "
                f"= {2 * self.num_patterns + self.num_categories}"
            )
        if 2 * self.mean_events_per_user > free:
            raise ValueError(
                f"mean_events_per_user = {self.mean_events_per_user:g} must be at most half of the {free} items "
                "outside patterns, because no item occurs twice in a history"
            )
        if self.pattern_min_lag > self.pattern_max_lag:
            raise ValueError("pattern_min_lag must not exceed pattern_max_lag")
        taken = self.pattern_share + self.pattern_share / self.pattern_probability + self.transition_share
        if taken > 1.0:
            raise ValueError(
                f"effects, their causes (pattern_share / pattern_probability) and transition_share take {taken:.2f} of "
                "all events; lower pattern_share or transition_share until they take at most 1"
            )
        if self.time_span_seconds < 4 * self.max_events_per_user:
            raise ValueError(
                f"time_span_seconds must be at least {4 * self.max_events_per_user}: four for each event of a user"
            )
        return self

    @property
    def max_events_per_user(self) -> int:
        """Longest history: at most half of the items outside patterns, so that an unseen one is always found quickly."""
        return int(min(_LONGEST_OVER_MEAN * self.mean_events_per_user, (self.num_items - 2 * self.num_patterns) // 2))

    @property
    def num_blocks(self) -> int:
        """Number of files of events."""
        return -(-self.num_users // self.users_per_file)


@dataclass(frozen=True)
class SyntheticWorld:
    """Properties that all users share. Free items are those outside patterns, ordered by category."""

    item_category: Ints  # [items]
    item_latent: Floats  # [items, latent_width], length 1
    item_popularity: Doubles  # [items], sums to 1 over the free items, 0 for causes and effects
    category_centre: Floats  # [categories, latent_width], length 1
    free_items: Ints  # [free items]
    category_start: Longs  # [categories + 1], bounds of each category in free_items
    cumulative_popularity: Doubles  # [free items + 1], from 0 to 1
    successor: Ints  # [items, num_successors], free items
    successor_probability: Doubles  # [num_successors], falling, sums to 1
    cause: Ints  # [patterns]
    effect: Ints  # [patterns]


def build_world(config: SyntheticConfig) -> SyntheticWorld:
    """Draw items, categories, transitions and patterns: a function of the config alone."""
    rng = np.random.default_rng([config.seed, _WORLD_STREAM])
    num_items = config.num_items
    num_categories = config.num_categories
    width = config.latent_width
    shuffled = rng.permutation(num_items).astype(np.int32)
    cause, effect, free = np.split(shuffled, [config.num_patterns, 2 * config.num_patterns])
    # Popular categories have more items; each has at least one that is free.
    category = rng.choice(num_categories, num_items, p=rng.dirichlet(np.full(num_categories, 5.0))).astype(np.int32)
    category[free[:num_categories]] = np.arange(num_categories, dtype=np.int32)
    centre = unit(rng.standard_normal((num_categories, width), dtype=np.float32))
    noise = unit(rng.standard_normal((num_items, width), dtype=np.float32))
    popularity = np.zeros(num_items)
    popularity[free] = (1.0 + rng.permutation(free.size)) ** -config.popularity_skew
    popularity /= popularity.sum()
    free = free[np.lexsort((free, category[free]))]
    start = np.searchsorted(category[free], np.arange(num_categories + 1)).astype(np.int64)
    weights = 0.5 ** np.arange(config.num_successors)
    return SyntheticWorld(
        item_category=category,
        item_latent=unit(centre[category] + np.float32(_ITEM_SPREAD) * noise),
        item_popularity=popularity,
        category_centre=centre,
        free_items=free,
        category_start=start,
        cumulative_popularity=np.concatenate(([0.0], np.cumsum(popularity[free]))),
        successor=_draw_successors(rng, config.num_successors, category, popularity, free, start),
        successor_probability=weights / weights.sum(),
        cause=cause,
        effect=effect,
    )


def _draw_successors(
    rng: np.random.Generator, num: int, category: Ints, popularity: Doubles, free: Ints, start: Longs
) -> Ints:
    """Draw the more popular of two random free items of the same category: skewed, yet different for every item."""
    first = start[category]
    size = np.diff(start)[category]
    drawn = free[first[:, None, None] + (rng.random((category.size, num, 2)) * size[:, None, None]).astype(np.int64)]
    return np.where(popularity[drawn[..., 0]] >= popularity[drawn[..., 1]], drawn[..., 0], drawn[..., 1])


def unit(vectors: Floats) -> Floats:
    """Scale each row to length 1."""
    lengths: Floats = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return vectors / lengths
