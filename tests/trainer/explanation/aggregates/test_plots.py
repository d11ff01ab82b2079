"""Plots of attention show the groups that have events, and every map."""

import re

import numpy as np
import pytest

from trainer.explanation.aggregates import plots
from trainer.explanation.aggregates.groups import feature_codes, feature_grouping, hour_codes, hour_grouping
from trainer.explanation.aggregates.sums import AttentionSums, attention_sums
from trainer.explanation.attribution import MapName
from trainer.pages.page import Plot, drawing

CATEGORIES = [f"category {number}" for number in range(30)]


def sums_of(num_heads: int) -> AttentionSums:
    draws = np.random.default_rng(7)
    offsets = np.arange(0, 401, 20)
    maps = [MapName(f"block {1 + head // 2}", head % 2, "weights") for head in range(num_heads)]
    hours = hour_codes(draws.integers(6, 10, 400) * 3_600, 1)
    categories = feature_codes(np.minimum(draws.geometric(0.1, 400), 29), len(CATEGORIES))
    codes = {"hour": (hours, 24), "item.category": (categories, len(CATEGORIES))}
    return attention_sums(maps, draws.random((num_heads, 400)), offsets, codes)


def text_of(plot: Plot) -> str:
    return " ".join(re.findall(r">([^<>]+)<", str(plot.svg)))


@pytest.mark.parametrize("num_heads", [1, 4, 10])
def test_plots_show_groups_with_events(num_heads: int) -> None:
    sums = sums_of(num_heads)
    with drawing():
        hours = plots.group_plot(sums, hour_grouping())
        categories = plots.group_plot(sums, feature_grouping("item.category", "category", CATEGORIES))
        effective = plots.effective_plot(sums)
    words = text_of(hours).split()
    assert {"06", "07", "08", "09"} <= set(words)
    assert not {"05", "10"} & set(words)
    shown = re.findall(r"category \d+", text_of(categories))
    assert len(shown) == plots.MOST_GROUPS
    assert text_of(effective).count("block ") == num_heads
    assert ("mean of heads" in text_of(hours)) == (num_heads > plots.MOST_LINES)
    assert "Grey" in hours.caption
