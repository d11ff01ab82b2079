"""The comparison with other tools: what they are given, ratios, and the gate."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.pages import stored_figures, with_table
from benchmarks.peers.__main__ import config_of
from benchmarks.peers.figures import MARK, lost, ratios, table
from benchmarks.peers.histories import read_events, write_lists
from benchmarks.peers.questions import BATCH, DROPOUT, LENGTH, PEERS_WIDTH, QUESTIONS, RUNS

ROOT = Path(__file__).parents[2]
STORED = ROOT / "docs/results/benchmark_peers.json"


def test_other_tools_get_the_events_in_order_without_the_test_event(tmp_path):
    rows = [(9, "c", 1), (7, "a", 2), (7, "b", 1), (9, "a", 0), (7, "c", 3), (9, "b", 2)]
    users, items, places = zip(*rows, strict=True)
    pq.write_table(pa.table({"user_id": users, "item_id": items, "position": places}), tmp_path / "logs.parquet")
    events = read_events(str(tmp_path / "logs.parquet"))
    numbers = {"c": 0, "a": 1, "b": 2}
    assert events.to_pydict() == {
        "user_id": [0, 0, 1, 1],  # 9 comes first in the file
        "item_id": [numbers[item] for item in "acba"],
        "position": [0, 1, 1, 2],
    }
    assert write_lists(events, tmp_path / "lists.parquet") == 2
    lists = pq.read_table(tmp_path / "lists.parquet")
    assert lists.to_pydict() == {"user_id": [0, 1], "item_id": [[1, 0], [2, 1]]}


def results(ours: float) -> dict:
    sides = {side: [ours, 2 * ours] for side in RUNS}
    return {"speeds": {"HSTU, 128 negatives": {**sides, "slow": [50.0, 100.0], "fast": [100.0, 80.0]}}}


def test_a_ratio_is_that_of_a_turn_to_the_fastest_form_of_the_other_tool():
    side = next(iter(RUNS))
    assert ratios(results(300.0)["speeds"]["HSTU, 128 negatives"], side) == [3.0, 6.0]
    assert "| 4.5x (3.0 - 6.0) | 12x |" in table(results(300.0))


def test_the_gate_names_each_ratio_that_fell():
    assert lost(results(300.0), results(300.0)) == []
    assert lost(results(260.0), results(300.0)) == []
    fallen = lost(results(250.0), results(300.0))
    assert len(fallen) == len(RUNS)
    assert fallen[0] == "HSTU, 128 negatives, Shoal, 2 workers: 3.75x of the fastest other tool; it was 4.50x"


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("side", RUNS)
def test_the_trainings_of_shoal_are_of_the_same_size_as_the_others(tmp_path, name, side):
    workers, _, kernels = RUNS[side]
    config = config_of(tmp_path, "logs.parquet", QUESTIONS[name], side, workers, kernels)
    assert (config.model.max_history, config.train.batch_size) == (LENGTH, BATCH)
    assert config.model.encoder.num_blocks == 2
    assert config.tables["item"].dim >= PEERS_WIDTH
    assert config.model.encoder.dropout == DROPOUT
    assert config.cluster.num_workers == workers


def test_the_page_shows_the_stored_figures():
    page = (ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    assert with_table(page, MARK, table(stored_figures(STORED))) == page
