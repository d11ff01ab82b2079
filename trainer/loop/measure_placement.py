"""Measuring what a run's plan costs, once before its first step, and its steps as they go. Collective."""

import resource
from pathlib import Path
from typing import Any

from sharding.tables.measure import measure_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from trainer.loop.build import Built
from trainer.loop.step_clock import StepClock
from trainer.placement.record import RECORD_FILE, placement_values, read_record
from trainer.storage.files import write_json_atomically

MOST_IDS = 50_000  # of a trial: more would take minutes on large tables, and tell no more
REPEATS = 3


def record_placement(run_dir: Path, built: Built, optimizers: Optimizers, world: World) -> None:
    """Measure every table and note it, unless the run has done so for this plan. Collective; changes no weight or state."""
    planned_tables = built.planned_tables
    noted = world.on_first(lambda: read_record(run_dir).get("plan", {}).get("inputs"))
    if noted == planned_tables.plan.inputs:
        return
    loads = {load.name: load for load in planned_tables.loads}
    trials = {
        name: sorted({max(1, int(min(load.ids_per_rank, load.num_rows, MOST_IDS) / share)) for share in (8, 2, 1)})
        for name, load in loads.items()
    }
    measured = measure_tables(built.sharded_model, optimizers, built.tables, trials, world, REPEATS)
    if world.is_first:
        write_json_atomically(run_dir / RECORD_FILE, placement_values(planned_tables, measured))


def record_steps(run_dir: Path, clock: StepClock, world: World) -> None:
    """Note how long steps took on each rank so far. Collective."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    everywhere: list[Any] = world.gather_objects((clock.means(), rss))
    if world.is_first:
        seconds = {part: [means[part] for means, _ in everywhere] for part in everywhere[0][0]}
        steps = {"num_steps": clock.num_steps, "seconds": seconds, "process_bytes": [size for _, size in everywhere]}
        write_json_atomically(run_dir / RECORD_FILE, {**read_record(run_dir), "steps": steps})
