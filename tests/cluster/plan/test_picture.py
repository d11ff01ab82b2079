"""The picture of a plan: every shard once, as high as its memory, under the limit that there is."""

from xml.etree import ElementTree

import numpy as np
import pytest

from cluster.plan.drawing import ALARM
from cluster.plan.picture import MEMORY_HEIGHT, PHASES, picture
from sharding.plan import Plan, TablePlan
from sharding.planning.costs import predict
from sharding.planning.load import TableLoad
from sharding.planning.prediction import Prediction
from sharding.planning.topology import GIB, Topology, described
from sharding.planning.units import bytes_text, count_text, seconds_text

SVG = "{http://www.w3.org/2000/svg}"


def mixed_plan(num_ranks: int, replica_groups: int = 1) -> tuple[Plan, Prediction, Topology]:
    """Return tables of every sharding, large and small, on random ranks."""
    random = np.random.default_rng(num_ranks)
    group = num_ranks // replica_groups
    tables = {
        "spread": TablePlan("row_wise", "fused", 1_000_000 * group, 64),
        "copied": TablePlan("data_parallel", "dense", 100_000, 64),
        "on_a_host": TablePlan("table_row_wise", "fused", 10_000_000, 64, (group // 8 - 1,)),
        "gridded": TablePlan("grid_shard", "fused", 10_000_000, 64, (0, 0)),
        "cut": TablePlan("table_column_wise", "fused", 10_000_000, 64, (0, 1)),
        "short": TablePlan("row_wise", "fused", 5, 64),  # fewer rows than ranks
    }
    for number in range(num_ranks):
        place = int(random.integers(group))
        tables[f"whole_{number}"] = TablePlan("table_wise", "fused", int(random.integers(10, 10**7)), 64, (place,))
        tables[f"columns_{number}"] = TablePlan("column_wise", "fused", 2_000_000, 64, (place, place))
    loads = [
        TableLoad(name, table.num_rows, table.dim, True, 1000.0, 500.0, optimizer="adagrad")
        for name, table in tables.items()
    ]
    plan = Plan(num_ranks, 8, "cuda", tables, replica_groups=replica_groups)
    topology = described("h100-80gb", num_ranks)
    return plan, predict(plan, loads, topology), topology


def drawn(plan: Plan, prediction: Prediction, topology: Topology) -> ElementTree.Element:
    return ElementTree.fromstring(picture(plan, prediction, topology, "a <plan>"))


def blocks(svg: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the elements that stand for shards."""
    return [rect for rect in svg.iter(f"{SVG}rect") if "data-shards" in rect.attrib]


def title_of(block: ElementTree.Element) -> str:
    title = block.find(f"{SVG}title")
    assert title is not None
    return title.text or ""


@pytest.mark.parametrize(("num_ranks", "replica_groups"), [(8, 1), (64, 1), (64, 2), (128, 1)])
def test_every_shard_with_rows_is_in_one_block(num_ranks: int, replica_groups: int) -> None:
    plan, prediction, topology = mixed_plan(num_ranks, replica_groups)
    shards = sum(bool(shard.num_rows) for name in plan.tables for shard in plan.shards(name)) * replica_groups
    svg = drawn(plan, prediction, topology)
    assert sum(int(block.attrib["data-shards"]) for block in blocks(svg)) == shards


def test_blocks_are_as_high_as_their_memory_and_stand_on_each_other() -> None:
    plan, prediction, topology = mixed_plan(8)
    actual = [block for block in blocks(drawn(plan, prediction, topology)) if title_of(block).startswith("rank 3\n")]
    heights = {
        name: float(block.attrib["height"])
        for block in actual
        for name in ("spread", "on_a_host")
        if f"\n{name}:" in title_of(block)
    }
    memory = prediction.memory_bytes
    assert heights["spread"] / heights["on_a_host"] == pytest.approx(memory[0, 3] / memory[2, 3], rel=0.02)
    edges = sorted((float(b.attrib["y"]), float(b.attrib["y"]) + float(b.attrib["height"])) for b in actual)
    assert [lower for _, lower in edges[:-1]] == pytest.approx([upper for upper, _ in edges[1:]], abs=0.02)


def test_a_tooltip_names_table_rank_and_size() -> None:
    plan, prediction, topology = mixed_plan(8)
    titles = [title_of(block) for block in blocks(drawn(plan, prediction, topology))]
    (text,) = (title for title in titles if title.startswith("rank 1\ncut:"))
    assert "table_column_wise, fused" in text
    assert "rows 0 to 9,999,999, columns 32 to 63" in text
    assert bytes_text(prediction.memory_bytes[4, 1]) in text


def test_equal_neighbours_are_one_block_among_many_ranks() -> None:
    plan, prediction, topology = mixed_plan(128)
    spread = [b for b in blocks(drawn(plan, prediction, topology)) if "\nspread: row_wise" in title_of(b)]
    assert [block.attrib["data-shards"] for block in spread] == ["128"]
    assert title_of(spread[0]).startswith("ranks 0 to 127")


def test_a_thousand_ranks_fit_into_a_page() -> None:
    assert len(picture(*mixed_plan(1024), "many")) < 3_000_000


@pytest.mark.parametrize(("memory", "words"), [(40 * GIB, ""), (4000 * GIB, ", far above")])
def test_the_limit_is_drawn_where_tables_come_near_it(memory: int, words: str) -> None:
    plan, prediction, _ = mixed_plan(8)
    topology = Topology("cuda", 8, 8, memory)
    svg = drawn(plan, prediction, topology)
    limit = f"limit for tables: {bytes_text(topology.capacity_bytes)}{words}"
    assert limit in [text.text for text in svg.iter(f"{SVG}text")]
    assert any(path.attrib["stroke"] == ALARM for path in svg.iter(f"{SVG}path")) == (words == "")


def test_tables_in_host_memory_have_a_panel_of_their_own() -> None:
    plan, prediction, topology = mixed_plan(8)
    assert "host memory" not in picture(plan, prediction, topology, "")
    tables = {**plan.tables, "spread": TablePlan("row_wise", "fused_uvm", 8_000_000, 64)}
    there = Plan(8, 8, "cuda", tables)
    loads = [TableLoad(name, table.num_rows, 64, True, 1000.0, 500.0) for name, table in tables.items()]
    svg = drawn(there, predict(there, loads, topology), topology)
    assert "host memory" in [text.text for text in svg.iter(f"{SVG}text")]
    shards = sum(bool(shard.num_rows) for name in tables for shard in there.shards(name))
    assert sum(int(block.attrib["data-shards"]) for block in blocks(svg)) == shards


def test_every_rank_has_a_bar_of_the_phases() -> None:
    plan, prediction, topology = mixed_plan(8)
    svg = drawn(plan, prediction, topology)
    colours = {colour for _, colour in PHASES.values()}
    bars = [
        rect
        for rect in svg.iter(f"{SVG}rect")
        if rect.attrib.get("fill") in colours and rect.find(f"{SVG}title") is not None
    ]
    of_rank = [bar for bar in bars if title_of(bar).startswith("rank 5\n") and "in a step" in title_of(bar)]
    assert len(of_rank) == len(PHASES)
    assert seconds_text(float(prediction.rank_seconds[5])) in title_of(of_rank[0])


def test_the_title_is_text_and_nothing_leaves_the_picture() -> None:
    svg = drawn(*mixed_plan(64))
    assert "a <plan>" in [text.text for text in svg.iter(f"{SVG}text")]
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for rect in svg.iter(f"{SVG}rect"):
        x, y = float(rect.attrib.get("x", 0)), float(rect.attrib.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(rect.attrib["width"]) <= width
        assert y + float(rect.attrib["height"]) <= height
    assert height > MEMORY_HEIGHT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 bytes"),
        (bytes_text(1536), "1.5 KiB"),
        (bytes_text(10 * GIB), "10 GiB"),
        (bytes_text(1000 * GIB), "0.977 TiB"),
        (seconds_text(0), "0 us"),
        (seconds_text(1.5e-6), "1.5 us"),
        (seconds_text(0.0125), "12.5 ms"),
        (seconds_text(0.9999), "1 s"),
        (seconds_text(5000), "5,000 s"),
        (count_text(9_999), "9,999"),
        (count_text(150_000), "150 k"),
        (count_text(1e10), "10 G"),
    ],
)
def test_figures_are_short(text: str, expected: str) -> None:
    assert text == expected
