"""What the settings' tests see of synthetic logs, and of the world behind them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.data.synth import synthesize
from tests.settings.lab import Lab
from trainer.data.synthetic.impression_world import ImpressionConfig, build_impression_world
from trainer.data.synthetic.impressions import logits
from trainer.data.synthetic.world import SyntheticConfig

Config = SyntheticConfig | ImpressionConfig
Rows = list[dict[str, Any]]


def written(lab: Lab, config: Config) -> Path:
    """Return the folder of a log that was written."""
    folder = lab.new_folder() / "log"
    synthesize(config, folder)
    return folder


def files(lab: Lab, config: Config) -> int:
    """Return the number of files of events or impressions."""
    return len(_paths(lab, config))


def _paths(lab: Lab, config: Config) -> list[Path]:
    folder = lab.see(written, config)
    return sorted([*folder.glob("events-*.parquet"), *folder.glob("impressions-*.parquet")])


def rows(lab: Lab, config: Config) -> Rows:
    """Return all rows of the log."""
    return [row for path in _paths(lab, config) for row in pq.read_table(path).to_pylist()]


def _truth(lab: Lab, config: Config, name: str) -> Rows:
    result: Rows = pq.read_table(lab.see(written, config) / "truth" / name).to_pylist()
    return result


def users(lab: Lab, config: Config) -> int:
    """Return the number of users."""
    return len({row["user_id"] for row in lab.see(rows, config)})


def items(lab: Lab, config: Config) -> int:
    """Return the number of items of the catalogue."""
    return len(_truth(lab, config, "items.parquet"))


def many_rows_per_user(lab: Lab, config: Config) -> bool:
    """Return whether users have more rows than midway between the two means of the entries."""
    midway = 70.0 if isinstance(config, ImpressionConfig) else 20.0
    return len(lab.see(rows, config)) / users(lab, config) > midway


def categories(lab: Lab, config: Config) -> int:
    """Return the number of categories of items."""
    return len({row["category"] for row in _truth(lab, config, "items.parquet")})


def latent_width(lab: Lab, config: Config) -> int:
    """Return the number of numbers in the latent vector of an item."""
    return len(_truth(lab, config, "items.parquet")[0]["latent"])


def popularity(lab: Lab, config: Config) -> list[float]:
    """Return the distinct popularities of items, the largest first."""
    return sorted({round(row["popularity"], 9) for row in _truth(lab, config, "items.parquet")}, reverse=True)


def successors(lab: Lab, config: Config) -> int:
    """Return the number of successors of an item."""
    return sum(row["item_id"] == 0 for row in _truth(lab, config, "transitions.parquet"))


def share_of_successors(lab: Lab, config: Config) -> float:
    """Return the share of events that succeed the item before."""
    follow = {(row["item_id"], row["next_item_id"]) for row in _truth(lab, config, "transitions.parquet")}
    histories: dict[int, list[int]] = {}
    for row in sorted(lab.see(rows, config), key=lambda row: row["time"]):
        histories.setdefault(row["user_id"], []).append(row["item_id"])
    pairs = [pair for history in histories.values() for pair in itertools.pairwise(history)]
    return sum(pair in follow for pair in pairs) / len(pairs)


def many_successors(lab: Lab, config: Config) -> bool:
    """Return whether more than half of the events succeed the item before."""
    return share_of_successors(lab, config) > 0.5


def category_changes(lab: Lab, config: Config) -> bool:
    """Return whether users change the category in more than seven of eight events."""
    histories: dict[int, list[int]] = {}
    for row in sorted(lab.see(rows, config), key=lambda row: row["time"]):
        histories.setdefault(row["user_id"], []).append(row["category"])
    pairs = [pair for history in histories.values() for pair in itertools.pairwise(history)]
    return sum(first != second for first, second in pairs) > len(pairs) * 7 / 8


def effects(lab: Lab, config: Config) -> int:
    """Return the number of effects that followed a cause."""
    return len(_truth(lab, config, "causes-00000.parquet"))


def patterns(lab: Lab, config: Config) -> Rows:
    """Return the pairs of a cause and its effect."""
    return _truth(lab, config, "patterns.parquet")


def num_patterns(lab: Lab, config: Config) -> int:
    """Return the number of pairs of a cause and its effect."""
    return len(patterns(lab, config))


def causes_without_effect(lab: Lab, config: Config) -> bool:
    """Return whether more than half of the causes have no effect."""
    causes = {row["cause_item"] for row in patterns(lab, config)}
    return effects(lab, config) < sum(row["item_id"] in causes for row in lab.see(rows, config)) / 2


def lags(lab: Lab, config: Config) -> set[int]:
    """Return the numbers of events from causes to their effects."""
    times: dict[int, list[int]] = {}
    for row in lab.see(rows, config):
        times.setdefault(row["user_id"], []).append(row["time"])
    places = {user: {time: place for place, time in enumerate(sorted(value))} for user, value in times.items()}
    return {
        places[row["user_id"]][row["effect_time"]] - places[row["user_id"]][row["cause_time"]]
        for row in _truth(lab, config, "causes-00000.parquet")
    }


def span(lab: Lab, config: Config) -> tuple[bool, bool]:
    """Return whether the log begins before 2024, and lasts longer than ten days."""
    times = [row["time"] for row in lab.see(rows, config)]
    return min(times) < 1_704_067_200, max(times) - min(times) > 10 * 86_400


def slates(lab: Lab, config: Config) -> int:
    """Return the number of items that are shown at a time."""
    return 1 + max(row["position"] for row in lab.see(rows, config))


def segments(lab: Lab, config: Config) -> int:
    """Return the number of kinds of users that categories have likings of."""
    return len(_truth(lab, config, "categories.parquet")[0]["segment_liking"])


def devices(lab: Lab, config: Config) -> list[float]:
    """Return the weights of devices."""
    return [row["weight"] for row in _truth(lab, config, "devices.parquet")]


def qualities(lab: Lab, config: Config) -> list[float]:
    """Return the items' own weights."""
    return [row["quality"] for row in _truth(lab, config, "items.parquet")]


def likings(lab: Lab, config: Config) -> list[list[float]]:
    """Return the likings of segments for categories."""
    return [row["segment_liking"] for row in _truth(lab, config, "categories.parquet")]


def shown_lately_clicked(lab: Lab, config: Config) -> Rows:
    """Return the items that were shown, in order."""
    return [{"user": row["user_id"], "item": row["item_id"]} for row in lab.see(rows, config)]


def _parts(lab: Lab, config: ImpressionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a click and of a conversion on three places, after two clicks on the first item's category."""
    world = build_impression_world(config)
    item = np.asarray([[0, int(world.by_category[0]), int(world.by_category[-1])]])
    recent = np.full((config.window, 1), -1, np.int32)
    recent[:2] = world.item_category[0]
    zero = np.zeros(1, np.int32)
    return logits(config, world, item, zero, zero, recent)


def click_logit(lab: Lab, config: ImpressionConfig) -> float:
    """Return the logit of a click on an item of the category that was clicked twice, in the first place."""
    return float(_parts(lab, config)[0][0, 0])


def second_click_logit(lab: Lab, config: ImpressionConfig) -> float:
    """Return the logit of a click on another item in the second place."""
    return float(_parts(lab, config)[0][0, 1])


def conversion_logit(lab: Lab, config: ImpressionConfig) -> float:
    """Return the logit of a conversion of an item of the category that was clicked twice."""
    return float(_parts(lab, config)[1][0, 0])


def led_click_logit(lab: Lab, config: ImpressionConfig) -> float:
    """Return the logit of a click on an item of the category that the clicked item leads to."""
    world = build_impression_world(config)
    clicked = world.item_category[0]
    led = int(
        np.flatnonzero(
            world.item_category == np.flatnonzero(world.leads_to[clicked] == np.arange(config.num_categories))[0]
        )[0]
    )
    recent = np.full((config.window, 1), -1, np.int32)
    recent[:2] = clicked
    zero = np.zeros(1, np.int32)
    return float(logits(config, world, np.asarray([[led]]), zero, zero, recent)[0][0, 0])


def price(config: ImpressionConfig) -> float:
    """Return the price of the first item."""
    return float(build_impression_world(config).item_price[0])


def probabilities(lab: Lab, config: Config) -> list[float]:
    """Return the probabilities of clicks that stand in the log."""
    return [row["click_probability"] for row in lab.see(rows, config)]
