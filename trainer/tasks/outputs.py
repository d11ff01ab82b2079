"""Files that an evaluation leaves in its folder, for the task of the run: results, tables, report.html. No torch.

The driver calls it. Both tasks have the same functions in trainer/evaluation/{next_item,ranking}/outputs.py.
"""

import json
from pathlib import Path
from typing import Any

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import Split
from trainer.evaluation.examples import FILE as EXAMPLES
from trainer.evaluation.next_item import outputs as next_item
from trainer.evaluation.ranking import outputs as ranking
from trainer.evaluation.ranking.results import RankingResults
from trainer.storage.files import write_text_atomically
from trainer.tasks.results import Summary

PAGE = "report.html"
# Raise it when the same model would get other figures or files, so that evaluations of earlier versions are not shown as current.
FIGURES_VERSION = 6
PAGE_VERSION = 4  # the same for report.html


def write_outputs(job: Job, split: Split, checkpoint: str, parts: Path) -> Summary:
    """Merge the workers' partial results in `parts`, and write all files into the folder above.

    Raises UserError if there is nothing to merge.
    """
    manifest = read_manifest(job.dataset_dir)
    write_results = ranking.write_results if job.config.model.task == "ranking" else next_item.write_results
    summary = write_results(job, split, checkpoint, parts, manifest)
    write_report(job, summary, manifest, parts.parent)
    return summary


def write_report(job: Job, summary: Summary, manifest: Manifest, folder: Path) -> Path:
    """Write report.html into the folder of an evaluation, from files alone; return its path."""
    if isinstance(summary, RankingResults):
        page = ranking.render_report(job, summary, manifest, folder)
    else:
        page = next_item.render_report(job, summary, manifest, folder)
    write_text_atomically(folder / PAGE, page)
    return folder / PAGE


def are_there(folder: Path, values: dict[str, Any]) -> bool:
    """Return whether a folder holds an evaluation with these values, complete."""
    try:
        held = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same: bool = held == json.loads(json.dumps(values))
    return same and all((folder / name).exists() for name in ("per_user.parquet", EXAMPLES, PAGE))
