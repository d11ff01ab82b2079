"""The benchmark of divided ids measures all that its table shows, on any number of ranks."""

import json
from pathlib import Path

import numpy as np

from benchmarks.sharded_ids import RESULTS, figures_of, with_tables
from sharding.config import DynamicIdsConfig
from sharding.world import World

CONFIG = DynamicIdsConfig(num_rows=3001, admit_after=2, max_age_steps=1, max_candidates=3000)


def small(world: World) -> dict[str, object]:
    return figures_of(world, 3, CONFIG, 800)


def test_both_sides_agree_and_are_timed_in_every_turn(rank_pool):
    for world_size in (1, 2):
        for figures in rank_pool.run(world_size, small):
            times = {name: values for name, values in figures.items() if name.endswith("_ms")}
            assert set(times) == {"step_ms", "whole_step_ms", "look_up_ms", "whole_look_up_ms"}
            assert all(len(values) == 3 and min(values) > 0 for values in times.values())


def test_the_page_has_the_stored_figures():
    page = Path("docs/ids.md").read_text(encoding="utf-8")
    assert with_tables(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_the_stored_memory_falls_as_one_over_the_number_of_ranks():
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    assert [row["world_size"] for row in rows] == [1, 2, 4, 8]
    for name in ("mapping_bytes", "frequency_bytes"):
        shares = [row[name] * row["world_size"] / rows[0][name] for row in rows]
        np.testing.assert_allclose(shares, 1.0, atol=0.02)
