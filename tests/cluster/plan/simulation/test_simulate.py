"""Simulations through the command line: limits with known values, the effect of every constant and option, mistakes by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from cluster.cli import plan
from cluster.plan.simulation.command import workers_given
from cluster.plan.simulation.config import SimulationConfig
from cluster.plan.simulation.profiles import GPU_PEAKS, Constants
from cluster.plan.simulation.simulate import Scaling
from sharding.planning.topology import DEVICES
from tests.cluster.plan.simulation.commands import LENGTHS, ROWS, invoke, mistake, settings, simulated
from tests.cluster.study.test_costing import write_dataset as write_ranking_dataset
from tests.support.datasets import tiny_dataset
from tests.support.html_page import Page, assert_loads_nothing

ROOT = Path(__file__).resolve().parents[4]
# No latency, and bandwidths that make communication free.
FREE = (
    "simulation.network.latency_seconds=0",
    "simulation.network.sum_latency_seconds=0",
    "simulation.network.latency_per_doubling_seconds=0",
    'plan.intra_host_bandwidth="1000000TiB"',
    'plan.inter_host_bandwidth="1000000TiB"',
    "tables.item.sharding=row_wise",
)


@pytest.mark.parametrize("device", [[], ["--device", "cuda"]])
def test_without_latency_and_with_equal_work_weak_scaling_is_perfect(config: Path, device: list[str]) -> None:
    arguments = [*settings(*FREE, "simulation.compute.busy_core_speed=1"), *device]
    values = simulated(config, *arguments, rows=("--rows", f"item={1 << 20}"))  # equal blocks of rows
    assert [point["workers"] for point in values["points"]] == [1 << power for power in range(11)]
    for point in values["points"]:
        assert point["efficiency"] == pytest.approx(1.0, abs=1e-6)
        assert point["parts"]["straggler"] == pytest.approx(0.0, abs=1e-12)


def test_strong_scaling_without_fixed_work_is_perfect_until_ranks_have_one_example(config: Path) -> None:
    free = settings(
        *FREE,
        "simulation.compute.step_seconds=0",
        "simulation.compute.block_seconds=0",
        "simulation.compute.memory_factor=0",
    )
    values = simulated(config, "--device", "cuda", "--scaling", "strong", "--workers", "1,4,64,128", *free)
    dense = [point["parts"]["dense"] + point["parts"]["straggler"] for point in values["points"]]
    assert dense[1] == pytest.approx(dense[0] / 4)
    assert dense[2] == pytest.approx(dense[0] / 64)
    # With more ranks than examples, some have none, and the others take as long as before.
    assert dense[3] == pytest.approx(dense[2])
    assert [point["batch"] for point in values["points"]] == [64] * 4


def test_weak_scaling_keeps_the_batch_of_a_worker(config: Path) -> None:
    values = simulated(config, "--workers", "1,2,1024")
    assert [point["batch"] for point in values["points"]] == [16, 32, 16 * 1024]
    tokens = simulated(config, "--workers", "1,8", "--set", "train.batch_tokens=4000")
    assert [point["batch"] for point in tokens["points"]] == [1000, 8000]
    assert tokens["batch_unit"] == "input events"


def test_fewer_workers_than_the_config_trains_with_can_be_simulated(config: Path) -> None:
    values = simulated(config, "--workers", "1", "--set", "cluster.min_workers=3")
    assert [point["workers"] for point in values["points"]] == [1]


def test_efficiency_and_goodput_fall_with_workers(config: Path) -> None:
    points = simulated(config, *LENGTHS, "--device", "cuda")["points"]
    efficiency = [point["efficiency"] for point in points]
    # On one host more workers do not fail more often, and copy a checkpoint in less time.
    goodput = [point["failures"]["goodput"] for point in points if point["workers"] >= 8]
    assert efficiency == sorted(efficiency, reverse=True)
    assert goodput == sorted(goodput, reverse=True)
    assert goodput[-1] < goodput[0]
    assert points[-1]["parts"]["straggler"] > points[1]["parts"]["straggler"] > 0.0
    assert points[0]["parts"]["straggler"] == points[0]["parts"]["sums"] == 0.0


def test_the_parts_are_the_step_and_the_figures_agree(config: Path) -> None:
    for point in simulated(config, *LENGTHS)["points"]:
        assert sum(point["parts"].values()) == pytest.approx(point["step_seconds"])
        assert point["examples_per_second"] == pytest.approx(point["batch"] / point["step_seconds"])
        kept = point["events_per_second"] * point["failures"]["goodput"]
        assert point["kept_events_per_second"] == pytest.approx(kept)
        failures = point["failures"]
        assert failures["replayed_examples"] == pytest.approx(
            failures["replayed_seconds"] * point["examples_per_second"]
        )
        assert failures["failures_per_day"] == pytest.approx(24 * point["hosts"] / (54 * 24 * 2048 / 419))


def test_workers_that_share_cores_take_their_turns(config: Path) -> None:
    cores = settings(
        "simulation.compute.cores_per_host=2", "plan.devices_per_host=8", "simulation.compute.busy_core_speed=0.9"
    )
    one, two, four, eight = simulated(config, "--workers", "1,2,4,8", *cores)["points"]
    speed = 0.9
    assert two["parts"]["dense"] == pytest.approx(one["parts"]["dense"] / speed)
    assert four["parts"]["dense"] == pytest.approx(2 * one["parts"]["dense"] / speed)
    assert eight["parts"]["dense"] == pytest.approx(4 * one["parts"]["dense"] / speed)
    # The waiting of one rank is the time of another.
    uneven = simulated(config, "--workers", "2,8", *cores, *LENGTHS)["points"]
    assert uneven[0]["parts"]["straggler"] > 0.0
    assert uneven[1]["parts"]["straggler"] == 0.0


def test_a_checkpoint_holds_weights_and_the_state_of_optimizers(config: Path) -> None:
    point = simulated(config, "--workers", "8", "--set", "tables.item.sharding=row_wise")["points"][0]
    dense = point["gradient_bytes"]
    rows = 1_000_000
    table = 4 * rows * (64 + 1)  # row-wise Adagrad has a number per row
    assert point["checkpoint"]["num_bytes"] == pytest.approx(table + 3 * dense)
    assert point["checkpoint"]["rank_bytes"] == pytest.approx(table / 8 + 3 * dense)
    averaged = simulated(
        config, "--workers", "8", "--set", "tables.item.sharding=row_wise", "--set", "train.ema_decay=0.9"
    )
    assert averaged["points"][0]["checkpoint"]["num_bytes"] == pytest.approx(table + 4 * dense)


def test_a_replicated_table_is_stored_once(config: Path) -> None:
    values = simulated(
        config, "--workers", "4", "--set", "tables.item.sharding=data_parallel", rows=("--rows", "item=1e4")
    )
    point = values["points"][0]
    assert point["checkpoint"]["num_bytes"] == pytest.approx(4 * 10_000 * 65 + 3 * point["gradient_bytes"])


def test_the_configured_interval_is_used_and_the_optimal_ones_are_shown(config: Path) -> None:
    optimal = simulated(config, "--workers", "64")["points"][0]["failures"]
    assert optimal["interval_seconds"] == pytest.approx(optimal["daly_seconds"])
    given = simulated(config, "--workers", "64", "--set", "checkpoint.every_steps=10")["points"][0]
    assert given["failures"]["interval_seconds"] == pytest.approx(10 * given["step_seconds"])
    assert given["failures"]["daly_seconds"] == pytest.approx(optimal["daly_seconds"])
    assert given["failures"]["goodput"] < optimal["goodput"]
    replayed = given["failures"]["interval_seconds"] / 2 + given["checkpoint"]["write_seconds"]
    assert given["failures"]["replayed_seconds"] == pytest.approx(replayed)


def test_waiting_for_files_makes_checkpoints_without_background_slower(config: Path) -> None:
    base = ["--workers", "8", "--set", "checkpoint.every_steps=1000"]
    background, at_once = (
        simulated(config, *base, "--set", f"checkpoint.background={value}")["points"][0] for value in ("true", "false")
    )
    assert at_once["checkpoint"]["stall_seconds"] == pytest.approx(background["checkpoint"]["write_seconds"])
    assert at_once["checkpoint"]["stall_seconds"] > background["checkpoint"]["stall_seconds"]


def test_ranks_beyond_the_streams_read_shared_row_groups(config: Path) -> None:
    by_count = ["--set", "train.deal_by=count"]
    few, many = simulated(config, "--workers", "64,1024", *by_count)["points"]
    assert many["read_bytes"] == pytest.approx(16 * few["read_bytes"])
    more = simulated(config, "--workers", "1024", "--set", "train.streams=1024", *by_count)["points"][0]
    assert more["read_bytes"] == pytest.approx(few["read_bytes"])


@pytest.mark.parametrize("limit", ["train.batch_tokens=4000", "train.batch_size=256"])
def test_batches_that_are_dealt_by_length_are_read_once_and_exchanged(config: Path, limit: str) -> None:
    """The bytes that a worker reads do not grow with workers. Those that it exchanges take time."""
    dealt = ["--set", limit]
    few, many = simulated(config, "--workers", "8,1024", *dealt)["points"]
    assert many["read_bytes"] == pytest.approx(few["read_bytes"])
    wide = ["--workers", "8", "--set", "simulation.storage.bytes_per_event=900"]
    assert simulated(config, *wide, *dealt)["points"][0]["parts"]["exchange"] > few["parts"]["exchange"]


def test_equal_numbers_of_examples_are_not_exchanged(config: Path) -> None:
    by_count = ["--workers", "8", "--set", "train.deal_by=count"]
    wide = ["--set", "simulation.storage.bytes_per_event=900"]
    plain, of_wide = (simulated(config, *by_count, *more)["points"][0] for more in ([], wide))
    assert of_wide["parts"]["exchange"] == plain["parts"]["exchange"]


# A value of each constant that changes a figure of the simulation below.
EFFECTS: dict[str, object] = {
    "compute.peak_flops": 1e9,
    "compute.efficiency": 0.1,
    "compute.memory_factor": 3.0,
    "compute.step_seconds": 0.5,
    "compute.block_seconds": 0.5,
    "compute.cores_per_host": 8,
    "compute.busy_core_speed": 0.4,
    "network.latency_seconds": 0.2,
    "network.sum_latency_seconds": 0.2,
    "network.latency_per_doubling_seconds": 0.2,
    "storage.bytes_per_event": 900.0,
    "storage.read_bandwidth": '"1KiB"',
    "storage.total_read_bandwidth": '"1KiB"',
    "storage.write_bandwidth": '"1KiB"',
    "storage.total_write_bandwidth": '"1KiB"',
    "storage.copy_bandwidth": '"1MiB"',
    "failures.host_mtbf_hours": 10.0,
    "failures.recovery_seconds": 3600.0,
    "failures.checkpoint_seconds": 7.0,
    "histories.mean_events": 10.0,
    "histories.variation": 0.1,
}


def constants_of(model: type[BaseModel]) -> set[str]:
    return {
        f"{section}.{name}"
        for section, field in model.model_fields.items()
        for name in field.annotation.model_fields  # type: ignore[union-attr]
    }


def test_every_constant_is_tried_and_described() -> None:
    assert constants_of(SimulationConfig) == EFFECTS.keys()
    page = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8")
    assert [name for name in EFFECTS if f"`{name}`" not in page] == []


def test_the_command_line_knows_both_kinds_of_scaling() -> None:
    assert get_args(plan.Scaling) == get_args(Scaling)


@pytest.mark.parametrize(("name", "value"), EFFECTS.items())
def test_every_constant_has_an_effect_as_an_option_and_in_a_file(config: Path, name: str, value: object) -> None:
    base = ["--workers", "4,8", *LENGTHS, *settings("simulation.compute.cores_per_host=2", "plan.devices_per_host=4")]
    before = simulated(config, *base)["points"]
    option = simulated(config, *base, "--set", f"simulation.{name}={value}")
    assert option["points"] != before
    section, _, key = name.partition(".")
    constants = config.parent / "constants.toml"
    others = {"histories": "mean_events = 30.0\nvariation = 0.8\n", "compute": "cores_per_host = 2\n"}
    text = "".join(f"[{other}]\n{lines}" for other, lines in others.items() if other != section)
    rest = [line for line in others.get(section, "").splitlines() if not line.startswith(key)]
    constants.write_text(text + f"[{section}]\n{key} = {value}\n" + "\n".join(rest))
    in_file = simulated(config, "--workers", "4,8", "--constants", str(constants), "--set", "plan.devices_per_host=4")
    assert in_file["points"] == option["points"]
    if section != "histories":
        assert in_file["constants"][key]["source"] == "given"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scaling", "strong"],
        ["--workers", "2,4"],
        ["--rows", "item=2e6"],
        ["--device", "cuda"],
        ["--devices", "8"],
        ["--devices-per-host", "2"],
        ["--set", "train.batch_size=128"],
        ["--set", "train.optimizer=sgd"],
        ["--set", "train.clip_norm=1.0"],
        ["--set", "cluster.cpus_per_worker=2"],
    ],
    ids=" ".join,
)
def test_every_option_has_an_effect(config: Path, arguments: list[str]) -> None:
    before = simulated(config, "--workers", "1,4", "--set", "simulation.compute.cores_per_host=4")["points"]
    given = simulated(config, "--workers", "1,4", "--set", "simulation.compute.cores_per_host=4", *arguments)["points"]
    assert given != before


def test_presets_and_precision_choose_the_peak(config: Path) -> None:
    values = simulated(config, "--device", "cuda", "--preset", "a100-80gb", "--workers", "1")
    assert values["constants"]["peak_flops"]["value"] == 19.5e12
    half = simulated(config, "--device", "cuda", "--set", "train.precision=bfloat16", "--workers", "1")
    assert half["constants"]["peak_flops"] == {"value": 989e12, "source": "data sheet of h100-80gb, bfloat16, dense"}
    assert GPU_PEAKS.keys() == DEVICES.keys()


def test_every_constant_has_a_source(config: Path) -> None:
    for arguments in ([], ["--device", "cuda"]):
        constants = simulated(config, "--workers", "1", *arguments)["constants"]
        assert all(one["source"] for one in constants.values())
        assert constants.keys() <= Constants.__dataclass_fields__.keys()


def test_workers_that_cannot_hold_the_tables_are_named(config: Path) -> None:
    arguments = ["--workers", "1,64", "--device", "cuda", "--device-memory", "16GiB", "--host-memory", "1MiB"]
    values = simulated(config, *arguments, rows=("--rows", "item=1e9"))
    assert list(values["refused"]) == ["1"]
    assert [point["workers"] for point in values["points"]] == [64]
    assert values["points"][0]["efficiency"] == 1.0
    assert any(
        line.startswith("too few workers for the tables: 1. With 1: tables.item needs") for line in values["warnings"]
    )


def test_a_dataset_gives_lengths_and_bytes(config: Path, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "run" / "dataset", num_items=40)
    values = simulated(config, "--workers", "1,8", rows=())
    assert 0 < values["facts"]["events_per_example"] < 100
    assert values["facts"]["bytes_per_event"] > 0
    assert not any("there is no dataset" in line for line in values["assumptions"])
    assert "holds a dataset, and the lengths of its histories are used" in mistake(config, *LENGTHS)


@pytest.mark.parametrize("num_events", [12, 0])
def test_a_ranker_is_simulated_on_its_dataset(tmp_path: Path, num_events: int) -> None:
    write_ranking_dataset(tmp_path / "run" / "dataset", num_events)
    path = tmp_path / "ranking.toml"
    path.write_text(
        f'[run]\ndir = "{tmp_path / "run"}"\n[logs]\npath = "e.parquet"\nlabels = ["click"]\nhistory_label = "click"\n'
        "[model]\nmax_history = 20\n[train]\nbatch_size = 8\n"
    )
    values = simulated(path, "--workers", "1,2,64", rows=())
    assert [point["batch"] for point in values["points"]] == [4, 8, 256]
    assert values["points"][0]["efficiency"] == 1.0
    for point in values["points"]:
        assert point["parts"]["dense"] > 0.0
        assert 0.0 < point["efficiency"] <= 1.0


def test_people_see_all_figures_and_the_page_needs_nothing_else(config: Path) -> None:
    done = invoke(config, *ROWS, *LENGTHS)
    assert done.exit_code == 0, done.exception
    for words in (
        "weak scaling",
        "straggler",
        "Young",
        "Daly",
        "goodput",
        "constant: peak_flops",
        "assumption: The parts",
    ):
        assert words in done.stdout
    text = (config.parent / "out" / "simulation.html").read_text()
    assert_loads_nothing(text)
    page = Page(text)
    assert page.open == []
    assert page.names.count("svg") == 2
    for words in ("1,024", "Assumptions", "log-normal", "peak_flops"):
        assert words in page.text
    assert json.loads((config.parent / "out" / "simulation.json").read_text())["points"][-1]["workers"] == 1024


def test_the_same_command_gives_the_same_figures(config: Path) -> None:
    arguments = [*LENGTHS, "--set", "train.batch_tokens=4000", "--workers", "1,64"]
    assert simulated(config, *arguments) == simulated(config, *arguments)


def test_it_loads_neither_torch_nor_ray(config: Path) -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from cluster.cli.app import app; "
        f"done = CliRunner().invoke(app, ['plan', {str(config)!r}, '--rows', 'item=1e6', '--simulate', '--workers', '1,8', "
        f"'--out', {str(config.parent / 'out')!r}]); "
        "print(done.exit_code, sorted({'torch', 'torchrec', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "0 []"


def test_numbers_of_workers_are_sorted_and_unique() -> None:
    assert workers_given("8,1,2,2") == (1, 2, 8)
