"""Settings of a synthetic log of impressions, and the world that its users share: items, categories and their links.

See trainer/data/synthetic/impressions.py for its use. Invariant: the world is a function of the config alone.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, Field, model_validator

from trainer.data.synthetic.world import Doubles, Ints, Longs

_WORLD_STREAM = 2  # keeps its random numbers apart from those of other worlds and of blocks
_LONGEST_OVER_MEAN = 5


class ImpressionConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Settings of a log of impressions. Weights are added to logits: a weight of 1 multiplies the odds by 2.7."""

    num_users: int = Field(5_000, ge=1, description="number of users")
    num_items: int = Field(500, ge=20, le=2**31 - 1, description="number of items. Ids are 0 to num_items - 1")
    mean_impressions_per_user: float = Field(100.0, ge=10.0, description="mean number of impressions per user")
    slate_size: int = Field(
        5, ge=1, le=20, description="number of items shown together. A click on one does not affect the others"
    )
    num_categories: int = Field(10, ge=3, description="number of item categories. Each leads to another one")
    num_segments: int = Field(
        4, ge=1, description="number of user segments, each with its own preferences for categories"
    )
    num_devices: int = Field(3, ge=1, description="number of devices on which items are shown")
    window: int = Field(10, ge=1, le=200, description="number of last clicks of a user that a probability depends on")
    click_offset: float = Field(-1.9, description="logit of a click if all other terms are zero")
    quality_spread: float = Field(0.6, ge=0.0, description="standard deviation of the items' own weights")
    same_weight: float = Field(3.0, description="weight of the share of the window in the candidate's category")
    leading_weight: float = Field(
        2.0, description="weight of the share of the window in the category that leads to the candidate's"
    )
    segment_spread: float = Field(
        0.5, ge=0.0, description="standard deviation of the segments' preferences for categories"
    )
    device_spread: float = Field(0.3, ge=0.0, description="standard deviation of the weights of devices")
    position_weight: float = Field(-0.15, description="weight of each position further down a slate")
    conversion_offset: float = Field(
        -1.2, description="logit of a conversion after a click if all other terms are zero"
    )
    price_weight: float = Field(
        -0.8, description="weight of an item's price (mean 0, standard deviation 1) for its conversion"
    )
    conversion_same_weight: float = Field(
        2.0, description="weight for a conversion of the share of the window in the candidate's category"
    )
    popularity_skew: float = Field(
        0.7, ge=0.0, le=3.0, description="Zipf exponent of the number of times that items are shown"
    )
    follow_share: float = Field(
        0.4, ge=0.0, le=1.0, description="share of shown items in a category that the user clicked recently"
    )
    seed: int = Field(1, ge=0, description="seed of everything random")
    users_per_file: int = Field(5_000, ge=1, description="number of users per file, which bounds the memory of a task")
    start_time: int = Field(1_700_006_400, ge=0, le=2**40, description="time of the first impressions, in Unix seconds")
    time_span_seconds: int = Field(30 * 86_400, ge=1, le=2**31, description="duration of the whole log, in seconds")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "ImpressionConfig":
        if self.num_items < 2 * self.num_categories:
            raise ValueError(
                f"num_items = {self.num_items} must be at least 2 x num_categories = {2 * self.num_categories}"
            )
        if self.slate_size > self.num_items // 2:
            raise ValueError(f"slate_size = {self.slate_size} must be at most half of num_items = {self.num_items}")
        if self.time_span_seconds < 4 * self.max_slates_per_user:
            raise ValueError(
                f"time_span_seconds must be at least {4 * self.max_slates_per_user}: four for each slate of a user"
            )
        return self

    @property
    def max_slates_per_user(self) -> int:
        """Most slates of a user."""
        return max(2, int(_LONGEST_OVER_MEAN * self.mean_impressions_per_user / self.slate_size))

    @property
    def num_blocks(self) -> int:
        """Number of files of impressions."""
        return -(-self.num_users // self.users_per_file)


@dataclass(frozen=True)
class ImpressionWorld:
    """Properties that all users share. Items are numbered from 0; by_category lists them category by category."""

    item_category: Ints  # [items]
    item_quality: Doubles  # [items]
    item_price: Doubles  # [items], mean 0, deviation 1
    cumulative_popularity: Doubles  # [items + 1], how often items are shown, in the order of by_category: from 0 to 1
    by_category: Ints  # [items]
    category_start: Longs  # [categories + 1], bounds of each category in by_category
    leads_to: Ints  # [categories], a permutation without a fixed point
    segment_liking: Doubles  # [segments, categories]
    device_weight: Doubles  # [devices]


def build_impression_world(config: ImpressionConfig) -> ImpressionWorld:
    """Draw items, categories and weights: a function of the config alone."""
    rng = np.random.default_rng([config.seed, _WORLD_STREAM])
    num_items = config.num_items
    num_categories = config.num_categories
    category = rng.permutation(np.arange(num_items) % num_categories).astype(np.int32)
    by_category = np.argsort(category, kind="stable").astype(np.int32)
    popularity = (1.0 + rng.permutation(num_items)) ** -config.popularity_skew
    cycle = rng.permutation(num_categories)
    leads_to = np.empty(num_categories, np.int32)
    leads_to[cycle] = np.roll(cycle, 1)
    price = rng.standard_normal(num_items)
    return ImpressionWorld(
        item_category=category,
        item_quality=config.quality_spread * rng.standard_normal(num_items),
        item_price=(price - price.mean()) / price.std(),
        cumulative_popularity=np.concatenate(([0.0], np.cumsum(popularity[by_category] / popularity.sum()))),
        by_category=by_category,
        category_start=np.searchsorted(category[by_category], np.arange(num_categories + 1)).astype(np.int64),
        leads_to=leads_to,
        segment_liking=config.segment_spread * rng.standard_normal((config.num_segments, num_categories)),
        device_weight=config.device_spread * rng.standard_normal(config.num_devices),
    )
