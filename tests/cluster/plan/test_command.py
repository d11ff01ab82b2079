"""`shoal plan` through the command line: both kinds of CONFIG, what it writes and prints, and mistakes by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.driver.run_lock import locked
from cluster.plan.command import rows_given, settings_in
from sharding.errors import PlacementError
from sharding.plan import plan_of
from tests.support.datasets import tiny_dataset
from tests.support.html_page import Page, assert_loads_nothing
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
WORKLOADS = sorted((ROOT / "configs" / "plans").glob("*.toml"))
WORKLOAD = """
batch_size = 4096
[topology]
devices = 8
devices_per_host = 4
device_memory = "80GiB"
[[table]]
name = "item"
rows = 10_000_000
pooled = true
ids_per_example = 10
[[table]]
name = "small"
count = 3
rows = 1_000
pooled = true
"""


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    path = tmp_path / "tables.toml"
    path.write_text(WORKLOAD)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f'[run]\ndir = "{tmp_path / "run"}"\n[logs]\npath = "events.parquet"\n[cluster]\nnum_workers = 4\n')
    return path


def invoke(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(path), *arguments])


def planned(path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON object."""
    done = invoke(path, "--out", str(path.parent / "out"), "--json", *arguments)
    assert done.exit_code == 0, done.exception
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def mistake(path: Path, *arguments: str) -> str:
    """The message of an error of those with which cluster.cli.app.main ends with exit code 2."""
    done = invoke(path, "--out", str(path.parent / "out"), *arguments)
    assert isinstance(done.exception, UserError | PlacementError), done.exception
    return str(done.exception)


def test_a_workload_is_planned_into_a_plan_that_can_be_read_back(workload: Path) -> None:
    values = planned(workload)
    plan = plan_of(json.loads(Path(values["plan"]).read_text()))
    assert list(plan.tables) == ["item", "small_0", "small_1", "small_2"]
    assert (plan.world_size, plan.local_world_size, plan.device) == (8, 4, "cuda")
    assert len(plan.inputs) == 64


def test_json_agrees_by_table_by_rank_and_in_total(workload: Path) -> None:
    values = planned(workload)
    assert [table["name"] for table in values["tables"]] == ["item", "small_0", "small_1", "small_2"]
    assert len(values["ranks"]["memory_bytes"]) == len(values["ranks"]["seconds"]) == 8
    assert sum(table["memory_bytes"] for table in values["tables"]) == pytest.approx(
        sum(values["ranks"]["memory_bytes"])
    )
    assert values["step_seconds"] == pytest.approx(sum(values["phases"].values()))
    assert values["memory_bytes"]["max"] == max(values["ranks"]["memory_bytes"])
    assert values["tables"][0]["memory_bytes"] > 10_000_000 * 64 * 4
    assert values["imbalance"] >= 1.0


def test_options_override_the_file(workload: Path) -> None:
    values = planned(
        workload, "--devices", "16", "--devices-per-host", "2", "--device-memory", "10GiB", "--preset", "a100-80gb"
    )
    topology = values["topology"]
    assert (topology["num_devices"], topology["devices_per_host"], topology["device_memory"]) == (16, 2, 10 * 2**30)
    assert topology["device_bandwidth"] == 2.039e12


def test_settings_reach_a_table_by_its_name(workload: Path) -> None:
    values = planned(workload, "--set", "table.item.sharding=table_wise", "--rows", "small=2e3")
    assert values["tables"][0]["sharding"] == "table_wise"
    assert values["tables"][1]["num_rows"] == 2000


def test_a_plan_states_the_ids_and_bags_that_a_rank_looks_up(workload: Path) -> None:
    tables = {table["name"]: table for table in planned(workload)["tables"]}
    assert [
        (tables[n]["pooled"], tables[n]["ids_per_rank"], tables[n]["vectors_per_rank"]) for n in ("item", "small_0")
    ] == [
        (True, 5120.0, 512.0),
        (True, 512.0, 512.0),
    ]


def test_people_see_tables_ranks_and_where_the_files_are(workload: Path) -> None:
    done = invoke(workload, "--out", str(workload.parent / "out"))
    assert done.exit_code == 0
    for words in ("tables on 8 GPUs", "small_0 (+2)", "rank 7", "imbalance", "bottleneck", "pooled tables"):
        assert words in done.stdout
    assert f"picture: {workload.parent / 'out' / 'plan.html'}" in done.stdout


def test_with_many_ranks_the_busiest_are_shown(workload: Path) -> None:
    done = invoke(workload, "--out", str(workload.parent / "out"), "--devices", "32")
    assert "median" in done.stdout
    assert done.stdout.count("busy: rank") == 3


def test_the_page_shows_the_picture_and_needs_nothing_else(workload: Path) -> None:
    text = Path(planned(workload)["page"]).read_text()
    assert_loads_nothing(text)
    page = Page(text)
    assert page.open == []
    assert page.names.count("svg") == 1
    assert "small_0 (+2)" in page.text


def test_a_comparison_shows_both_side_by_side(workload: Path) -> None:
    values = planned(workload, "--compare", 'devices=16, table.item.sharding=["table_wise"]')
    other = values["compared"]
    assert values["topology"]["num_devices"] == 8
    assert other["topology"]["num_devices"] == 16
    assert other["tables"][0]["sharding"] == "table_wise"
    folder = workload.parent / "out"
    assert plan_of(json.loads((folder / "plan-compared.json").read_text())).world_size == 16
    assert (folder / "plan.svg").read_text() != (folder / "plan-compared.svg").read_text()
    assert Page((folder / "plan.html").read_text()).names.count("svg") == 2
    done = invoke(workload, "--out", str(folder), "--compare", "devices=16,table.item.sharding=table_wise")
    assert "table_wise x 1" in done.stdout
    assert "16 GPUs" in done.stdout


def test_a_run_is_planned_for_its_workers_and_the_rows_that_are_given(config: Path) -> None:
    values = planned(config, "--rows", "item=1_000_001", "--device-memory", "4GiB")
    assert values["topology"]["device"] == "cpu"
    assert values["topology"]["num_devices"] == 4
    assert [(table["name"], table["num_rows"]) for table in values["tables"]] == [("item", 1_000_001)]
    assert any("no dataset" in line for line in values["assumptions"])
    on_gpus = planned(config, "--rows", "item=1_000_001", "--device", "cuda", "--devices", "16")
    assert (on_gpus["topology"]["device"], on_gpus["topology"]["num_devices"]) == ("cuda", 16)


def test_a_run_with_a_dataset_needs_no_rows(config: Path, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "run" / "dataset", num_items=40)
    values = planned(config, "--devices", "2")
    assert values["tables"][0]["num_rows"] == 41
    assert values["assumptions"] == ["2 workers are like this machine, whose memory they share"]


def test_the_plan_of_a_run_is_in_its_folder_and_does_not_block_it(config: Path, tmp_path: Path) -> None:
    assert invoke(config, "--rows", "item=1e5").exit_code == 0
    assert (tmp_path / "run" / "plan" / "plan.html").exists()
    with locked(tmp_path / "run"):
        pass


def test_the_plan_of_a_workload_is_in_the_current_folder(workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workload.parent)
    assert invoke(workload).exit_code == 0
    assert (workload.parent / "plan-tables" / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "user=3"], "--rows user: the model looks up no such table; there are item"),
        ([], "tables.item: nobody knows its rows yet, because its ids are a vocabulary of the logs"),
        (["--rows", "item=nan"], "--rows item=nan: write it as TABLE=N"),
        (["--rows", "item=many"], "--rows item=many: write it as TABLE=N"),
        (["--rows", "item=1e5", "--device-memory", "3 giraffes"], "plan.device_memory: could not interpret byte unit: giraffes"),
        (["--rows", "item=1e5", "--set", "device=tpu"], "device = tpu: choose cpu or cuda"),
        (["--rows", "item=1e5", "--preset", "h100-80gb"], "preset = h100-80gb describes GPUs"),
        (["--rows", "item=1e5", "--device", "cuda", "--set", "preset=x9"], "choose one of a100-80gb, h100-80gb"),
        (["--rows", "item=1e5", "--compare", "devices"], '--compare "devices": write it as KEY=VALUE,KEY=VALUE'),
        (["--rows", "item=1e5", "--compare", "train.batchsize=3"], "did you mean train.batch_size?"),
        (["--rows", "item=1e5", "--set", "tables.item.kernel=fused_uvm"], "tables.item: kernel = fused_uvm: needs a GPU"),
        (["--rows", "item=1e5", "--set", "tables.item.sharding=grid_shard", "--set", "tables.item.optimizer=adagrad"],
         "tables.item: sharding = grid_shard: not for tables that are looked up per event"),
        (["--rows", "item=1e10", "--device-memory", "1GiB"], "tables.item needs"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_plan_of_a_run_is_named(config: Path, arguments: list[str], message: str) -> None:
    assert message in mistake(config, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "user=3"], "has no such table"),
        (["--set", "table.item.shardin=row_wise"], "table.item.shardin: no such setting; did you mean table.item.sharding?"),
        (["--set", "table.item.rows=2_000_000_000_000"], "table.item.rows: must be less than or equal to 1000000000000"),
        (["--set", "topology.device_memory=80Gold"], "topology.device_memory: could not interpret byte unit"),
        (["--set", "table.item.sharding=column_wise"], "table.item: rowwise_adagrad has one number per row"),
        (["--set", "examples_per_rank=3"], "set either batch_size (of all devices together) or examples_per_rank"),
        (["--set", "table.item.rows=1e10"], "table.item.rows: must be a valid integer"),
        (["--rows", "item=1e11"], "tables.item needs"),
        (["--rows", "item=1e11"], "in a workload, plan.device_memory is topology.device_memory"),
        (["--set", "topology.replica_groups=3"], "plan.replica_groups = 3 does not divide the number of workers, 8"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_workload_is_named(workload: Path, arguments: list[str], message: str) -> None:
    assert message in mistake(workload, *arguments)


def test_tables_of_a_workload_have_names_of_their_own(workload: Path) -> None:
    workload.write_text(WORKLOAD.replace('"small"', '"item"'))
    assert "two tables are called 'item'" in mistake(workload)
    workload.write_text(WORKLOAD.replace('name = "small"\n', ""))
    assert "every table is a [[table]] with a name" in mistake(workload)


def test_a_folder_that_cannot_be_written_is_named(workload: Path) -> None:
    done = invoke(workload, "--out", str(workload / "out"))
    assert isinstance(done.exception, UserError)
    assert "choose another --out" in str(done.exception)


def test_settings_of_a_comparison_may_hold_lists() -> None:
    assert settings_in("devices=16, a.b=[1,2],c=x") == ["devices=16", "a.b=[1,2]", "c=x"]
    assert rows_given(["item=1_000", "user=2e3", "tag=3,000"]) == {"item": 1000, "user": 2000, "tag": 3000}


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_the_workloads_that_come_along_fit(path: Path, tmp_path: Path) -> None:
    done = invoke(path, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.exception
    values = json.loads(done.stdout)
    assert values["memory_bytes"]["max"] <= values["memory_bytes"]["limit"]
    assert str(values["topology"]["num_devices"]) in path.stem


def test_a_mistake_ends_with_two_and_one_message(config: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "plan", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("shoal: tables.item: nobody knows its rows yet")
    assert "Traceback" not in done.stderr


def test_a_plan_loads_neither_torch_nor_ray(workload: Path) -> None:
    program = (
        "import sys; from cluster.cli.app import app; app(standalone_mode=False); "
        "print(sorted({'torch', 'torchrec', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    arguments = ["plan", str(workload), "--out", str(workload.parent / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "[]"
