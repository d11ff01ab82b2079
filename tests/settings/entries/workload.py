"""Entries of a workload, which `shoal plan` plans without logs."""

from tests.settings.device_entries import of_devices_in
from tests.settings.entry import Entry, Settings
from tests.settings.logs import CALIBRATED
from tests.settings.observations.workloads import device, latency, load, replica_groups, seconds, tables

WORLD, TABLE, TOPOLOGY = "workload", "workload.table.item", "workload.topology"
ROW_WISE: Settings = {f"{TABLE}.sharding": "row_wise"}

ENTRIES = (
    # Sixteen devices share a batch of 64.
    Entry("workload.batch_size", 128, load("ids_per_rank"), 8.0, world=WORLD),
    Entry(
        "workload.examples_per_rank", 9, load("ids_per_rank"), 9.0, besides={"workload.batch_size": None}, world=WORLD
    ),
    *(
        Entry(f"workload.communication.{way}", "fp16", seconds, base=ROW_WISE, world=WORLD)
        for way in ("forward", "backward")
    ),
    Entry(f"{TABLE}.rows", 1234, load("num_rows"), 1234, world=WORLD),
    Entry(f"{TABLE}.dim", 64, load("dim"), 64, world=WORLD),
    Entry(f"{TABLE}.count", 2, tables, ["item_0", "item_1"], world=WORLD),
    Entry(f"{TABLE}.pooled", True, load("pooled"), True, world=WORLD),
    Entry(f"{TABLE}.ids_per_example", 3.0, load("ids_per_rank"), 12.0, world=WORLD),
    Entry(f"{TABLE}.bags_per_example", 2.0, load("vectors_per_rank"), 8.0, base={f"{TABLE}.pooled": True}, world=WORLD),
    Entry(f"{TABLE}.optimizer", "adam", load("optimizer"), "adam", world=WORLD),
    Entry(f"{TABLE}.sharding", "row_wise", load("shardings"), ("row_wise",), world=WORLD),
    Entry(f"{TABLE}.kernel", "fused_uvm", load("kernel"), "fused_uvm", world=WORLD),
    Entry(f"{TABLE}.ranks", [3], load("ranks"), (3,), base={f"{TABLE}.sharding": "table_wise"}, world=WORLD),
    Entry(f"{TABLE}.min_partition", 32, load("min_partition"), 32, world=WORLD),
    Entry(f"{TABLE}.cache_load_factor", 0.3, load("cache_load_factor"), 0.3, world=WORLD),
    Entry(f"{TOPOLOGY}.devices", 8, device("num_devices"), 8, world=WORLD),
    Entry(f"{TOPOLOGY}.device", "cpu", device("device"), "cpu", besides={f"{TOPOLOGY}.preset": None}, world=WORLD),
    Entry(f"{TOPOLOGY}.preset", "h200-141gb", device("device_bandwidth"), 4.8e12, world=WORLD),
    Entry(f"{TOPOLOGY}.devices_per_host", 4, device("devices_per_host"), 4, world=WORLD),
    *of_devices_in(TOPOLOGY, device, world=WORLD),
    Entry(f"{TOPOLOGY}.calibration", "LOGS/calibration.json", latency, CALIBRATED, world=WORLD),
    Entry(f"{TOPOLOGY}.replica_groups", 2, replica_groups, 2, world=WORLD),
)
