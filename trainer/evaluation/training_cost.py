"""Cost of a training for the report: FLOPs by the cost models, speed, and the time of each stage.

No torch, except for rankers with daily training.
FLOPs are computed from the settings and the dataset, not measured. Those of a step are means over the training examples. The peak
of which a share is shown is the one that the same training measured.
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.ranking.config import RankingConfig
from sharding.planning.units import count_text
from trainer.config.job import Job
from trainer.costing.matmul_peak import MatmulPeak, read_peak
from trainer.costing.training import costs_of_training, read_facts
from trainer.data.dataset.manifest import Manifest
from trainer.errors import UserError
from trainer.metrics_log import read_training_time
from trainer.pages.text import duration_text
from trainer.storage.files import write_json_atomically

FILE = "cost.json"
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class TrainingCost:
    """The content of cost.json."""

    unit: str
    """Unit of the costs: "event" or "impression"."""
    units_per_step: float
    """Events or impressions of a global batch, on average."""
    training_flops: float
    """FLOPs of one unit in training: forward, backward and recomputation."""
    matmul_flops: float
    """Those of matrix products among them."""
    parts: dict[str, float]
    """Training FLOPs of one unit by part of the model."""


def write_cost(job: Job, manifest: Manifest, folder: Path) -> None:
    """Write cost.json of a run into the folder of an evaluation, if the dataset is the one that the run was trained on."""
    cost = cost_of(job, manifest)
    if cost is not None:
        write_json_atomically(folder / FILE, asdict(cost))


def cost_of(job: Job, manifest: Manifest) -> TrainingCost | None:
    """Return the cost of a run's training. None for a dataset of other logs, or one without training impressions."""
    trained_on = _prepared_digest(job.run_dir)
    if manifest.derived or trained_on not in (None, manifest.digest):
        return None
    try:
        of_training = costs_of_training(job.config, read_facts(job.config, job.dataset_dir, manifest))
    except UserError:
        return None
    costs = of_training.costs
    return TrainingCost(
        "impression" if isinstance(job.config.model, RankingConfig) else "event",
        of_training.per_step,
        costs.training,
        costs.total.matmul,
        {name: work.training for name, work in costs.parts.items()},
    )


def read_cost(folder: Path) -> TrainingCost | None:
    """Return the cost that an evaluation has written, if it has."""
    try:
        return TrainingCost(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def cost_rows(cost: TrainingCost | None, job: Job, history: list[dict[str, Any]]) -> Rows:
    """Return what the training of a run cost, as names and values.

    Args:
        cost: its FLOPs; None if they are not known.
        job: the run.
        history: the lines of metrics.jsonl.
    """
    rows = _stage_rows(job.run_dir)
    lines = [row for row in history if row["kind"] == "train"]
    unit = "event" if cost is None else cost.unit
    # The targets of a ranker are its impressions.
    speeds = [row[f"{'targets' if unit == 'impression' else 'events'}_per_second"] for row in lines if _has_speed(row)]
    speed = statistics.median(speeds) if speeds else None
    if speed is not None:
        rows.append(("training: speed of all workers", f"{speed:,.0f} {unit}s/s (median of the log)"))
    if cost is None:
        return rows
    share = cost.matmul_flops / cost.training_flops if cost.training_flops else 0.0
    rows.append(
        (
            f"training: FLOPs of an {unit}",
            f"{count_text(cost.training_flops)}, {share:.0%} of them in matrix products",
        )
    )
    steps = max((row["step"] for row in lines), default=0)
    if steps:
        total = cost.training_flops * cost.units_per_step * steps
        rows.append(("training: FLOPs in all", f"about {count_text(total)} in {steps:,} steps"))
    if speed is not None:
        rows.append(("training: rate of all workers", f"{count_text(speed * cost.training_flops)}FLOP/s"))
        rows += _peak_rows(speed * cost.matmul_flops, read_peak(job.run_dir))
    return rows


def _peak_rows(rate: float, peak: MatmulPeak | None) -> Rows:
    """Return the share of the peak of matrix products, which the workers of the run measured. No row without a measurement.

    rate: FLOPs per second of the matrix products in training.
    """
    if peak is None or not peak.flops_per_second:
        return []
    workers = "1 worker" if peak.num_workers == 1 else f"{peak.num_workers} workers"
    measured = (
        f"{count_text(peak.flops_per_second)}FLOP/s in {peak.precision}, measured on {workers} at the start of training"
    )
    return [("training: matrix products, share of their peak", f"{rate / peak.flops_per_second:.1%} of {measured}")]


def part_rows(cost: TrainingCost | None) -> Rows:
    """Return the share of each part of the model in the FLOPs of training, the largest first."""
    if cost is None or not cost.training_flops:
        return []
    ordered = sorted(cost.parts.items(), key=lambda part: -part[1])
    return [(name, f"{flops / cost.training_flops:.1%}") for name, flops in ordered if flops]


def cost_section(folder: Path, job: Job, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a report shows of the cost of a training, from the files of an evaluation and of the run."""
    cost = read_cost(folder)
    return {"cost": cost_rows(cost, job, history), "cost_parts": part_rows(cost)}


def _has_speed(row: dict[str, Any]) -> bool:
    return "events_per_second" in row and "targets_per_second" in row


def _stage_rows(run_dir: Path) -> Rows:
    """Return the time of each finished stage of a run. Training is summed over its attempts, stages before it have one."""
    rows: Rows = []
    for name, entry in _stages(run_dir).items():
        if name != "train" and entry.get("status") == "done" and {"started", "finished"} <= entry.keys():
            rows.append((f"stage {name}", duration_text(entry["finished"] - entry["started"])))
    training = read_training_time(run_dir)
    if training is not None:
        rows.append(("stage train", f"{duration_text(training.seconds)}, validation and checkpoints included"))
    return rows


def _prepared_digest(run_dir: Path) -> str | None:
    """Return the digest of the dataset of a run, None if it is not recorded."""
    digest = _stages(run_dir).get("prepare", {}).get("result", {}).get("digest")
    return digest if isinstance(digest, str) else None


def _stages(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the record of the stages of a run; nothing if the file is missing or damaged."""
    try:
        stages = json.loads((run_dir / "state.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: entry for name, entry in stages.items() if isinstance(entry, dict)}
