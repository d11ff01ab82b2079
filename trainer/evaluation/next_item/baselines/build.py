"""The baselines that fit a dataset and the settings, counted in one pass over the training part."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from models.config import NextItemConfig
from sharding.world import World
from trainer.config.evaluate import BASELINES, BaselineName, EvaluateConfig
from trainer.data.dataset.manifest import Manifest
from trainer.data.inputs import clock_ticks
from trainer.data.stream.held_out import HeldOutBatch
from trainer.data.stream.row_groups import ColumnSelection, RowGroupReader
from trainer.evaluation.next_item.baselines import co_occurrence, ease
from trainer.evaluation.next_item.baselines.listed import BaselineRanks, masked_pairs
from trainer.evaluation.next_item.baselines.notes import BaselineNotes
from trainer.evaluation.next_item.baselines.order import ItemOrder
from trainer.evaluation.next_item.baselines.popularity import (
    RECENT_DAYS,
    SECONDS_PER_DAY,
    ListBaseline,
    WindowCounter,
    last_items,
)
from trainer.evaluation.next_item.baselines.training_part import Counter, count_training


class Baseline(Protocol):
    """A baseline of one dataset, the same on every rank."""

    @property
    def name(self) -> str:
        """The name in columns and tables."""

    @property
    def description(self) -> str:
        """The recommendations in one sentence."""

    def rank(self, held: HeldOutBatch, masked: np.ndarray, top: int) -> BaselineRanks:
        """Rank the targets of a batch of this rank, and return the `top` best items of each user. Not collective."""


@dataclass
class Baselines:
    """The baselines of an evaluation, and why others were left out."""

    used: list[Baseline]
    """In the order of reports."""
    num_items: int
    """V, the candidates."""
    left_out: dict[str, str]
    """By name, the reason why the baseline does not fit."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time on this rank: "counting" for all together, then ranking by name."""

    def rank_all(self, held: HeldOutBatch, mask_seen: bool, top: int) -> Iterator[tuple[str, BaselineRanks]]:
        """Yield the name of each baseline and what it ranks for a batch."""
        masked = masked_pairs(held, self.num_items, mask_seen)
        for baseline in self.used:
            started = time.perf_counter()
            ranks = baseline.rank(held, masked, top)
            self.seconds[baseline.name] = self.seconds.get(baseline.name, 0.0) + time.perf_counter() - started
            yield baseline.name, ranks

    def notes(self, elapsed: float) -> BaselineNotes:
        """Return the notes for the driver. elapsed: seconds in which model and baselines were ranked."""
        used = {baseline.name: baseline.description for baseline in self.used}
        ranking = sum(self.seconds.get(name, 0.0) for name in used)
        return BaselineNotes(used, self.left_out, {"model": elapsed - ranking, **self.seconds})


def build_baselines(
    folder: Path,
    manifest: Manifest,
    train_events: np.ndarray,
    model: NextItemConfig,
    config: EvaluateConfig,
    unknown: bool,
    world: World,
) -> Baselines:
    """Return the baselines of the settings that fit the dataset. Collective. Raises UserError naming a file that cannot be read.

    Args:
        folder: the dataset.
        manifest: its manifest.
        train_events: (V,) training events of each item, by id from 1 on.
        model: the settings of the model, for the unit of times.
        config: the settings of evaluation.
        unknown: whether items that the training part does not know have ids after the known ones, instead of 0.
        world: the ranks.
    """
    started = time.perf_counter()
    reader = RowGroupReader(folder, manifest, ColumnSelection(times=True, unknown=unknown), cache_bytes=0)
    wanted = BASELINES if config.baselines is None else tuple(config.baselines)
    num_items = train_events.size
    left_out = _left_out(wanted, config, num_items)
    windows: list[WindowCounter] = []
    if "recent_popularity" in wanted:
        windows, reasons = _windows(manifest, model, num_items)
        left_out |= reasons
    fitting = [name for name in wanted if name not in left_out]
    pairs = co_occurrence.PairCounter(num_items, reader.train_ends()) if "co_occurrence" in fitting else None
    gram = ease.GramCounter(num_items, int(reader.first_rows[-1]), world) if "ease" in fitting else None
    counters: list[Counter] = [counter for counter in (*windows, pairs, gram) if counter is not None]
    count_training(reader, counters, world)

    order = ItemOrder.by_counts(train_events)
    used: list[Baseline] = []
    if "popularity" in fitting:
        used.append(ListBaseline("popularity", "items by their number of training events", order))
    for window in windows:
        recent = ItemOrder.by_counts(window.total(world), train_events)
        text = f"items by their number of events in the last {window.days} days of the training part"
        used.append(ListBaseline(f"popularity_{window.days}d", text, recent))
    if "repeat_last" in fitting:
        text = "the user's own items, the most recent first, then popular items"
        used.append(ListBaseline("repeat_last", text, order, last_items))
    if pairs is not None:
        followers = pairs.followers(order, world)
        used.append(ListBaseline("co_occurrence", _pairs_text(pairs), order, followers.listed))
    if gram is not None:
        used.append(ease.Ease(gram.weights(world), order, _ease_text(gram)))
    return Baselines(used, num_items, left_out, {"counting": time.perf_counter() - started})


def _left_out(wanted: tuple[BaselineName, ...], config: EvaluateConfig, num_items: int) -> dict[str, str]:
    """Return the reasons of the baselines that do not fit, by name."""
    reasons = {}
    if "repeat_last" in wanted and config.mask_seen:
        reasons["repeat_last"] = "seen items are masked, so no repeated item can be listed; see evaluate.mask_seen"
    if "ease" in wanted and num_items > ease.MAX_ITEMS:
        reasons["ease"] = f"the catalogue has {num_items:,} items, and EASE is computed for at most {ease.MAX_ITEMS:,}"
    return reasons


def _windows(manifest: Manifest, model: NextItemConfig, num_items: int) -> tuple[list[WindowCounter], dict[str, str]]:
    """Return the windows that fit the training part, and the reasons of the others."""
    ticks = clock_ticks(manifest, model)
    if ticks is None:
        return [], {"recent_popularity": "the times of the logs are not clock times; see model.inputs.time_unit"}
    times = manifest.profile.get("time_range", {}).get("train")
    if times is None:
        return [], {"recent_popularity": "the manifest does not tell the times of the training part"}
    first, last = times
    windows, reasons = [], {}
    for days in RECENT_DAYS:
        since = last + 1 - days * SECONDS_PER_DAY * ticks
        if since <= first:
            reasons[f"popularity_{days}d"] = f"the training part spans no more than {days} days"
        else:
            windows.append(WindowCounter(days, since, num_items))
    return windows, reasons


def _pairs_text(pairs: co_occurrence.PairCounter) -> str:
    return (
        f"items that follow the last {co_occurrence.LAST_EVENTS} events of the history within {co_occurrence.DISTANCE} events "
        f"in training histories{_sample_text(pairs.stride)}, then popular items"
    )


def _ease_text(gram: ease.GramCounter) -> str:
    return f"EASE with regularisation {ease.REGULARISATION:g}{_sample_text(gram.stride)}"


def _sample_text(stride: int) -> str:
    return f" (1 of {stride:,} users counted)" if stride > 1 else ""
