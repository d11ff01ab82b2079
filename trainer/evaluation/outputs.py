"""What an evaluation leaves in its folder, of either task: metrics.json, tables, report.html. No torch: the driver calls it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.ranking.config import RankingConfig, learned_labels
from trainer.data.dataset.manifest import Manifest, read_manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.inputs import ticks_per_second
from trainer.errors import UserError
from trainer.evaluation.next_item import report, results
from trainer.evaluation.next_item.results import Results
from trainer.evaluation.ranking import report as ranking_report
from trainer.evaluation.ranking import results as ranking_results
from trainer.evaluation.ranking.day_results import day_results
from trainer.evaluation.ranking.results import RankingResults
from trainer.job import Job
from trainer.metrics_log import read_metrics
from trainer.storage.files import write_json_atomically, write_text_atomically

Summary = Results | RankingResults

# Raise it when the same model would get other figures or files, so that evaluations of earlier versions are not shown as current.
FIGURES_VERSION = 2
PAGE_VERSION = 1  # the same for report.html


def write_outputs(job: Job, split: Split, checkpoint: str, parts: Path) -> Summary:
    """Merge what the ranks wrote into `parts`, and write all of it into the folder above. Raises UserError if there is nothing."""
    folder, manifest = parts.parent, read_manifest(job.dataset_dir)
    vocabulary = read_vocabulary(job.dataset_dir, manifest, with_unknown=bool(used_features(manifest)))
    summary: Summary
    if isinstance(job.config.model, RankingConfig):
        labels = tuple(learned_labels(job.config.model, manifest.labels["names"]))
        found = ranking_results.merge_parts(parts, labels)
        ticks = _ticks(job, manifest)
        summary = ranking_results.summarize(found, split, checkpoint, manifest, job.config.model.max_history, ticks)
        ranking_results.write(folder, summary, found, vocabulary.values)
    else:
        merged = results.merge_parts(parts)
        summary, columns = results.summarize(
            merged, split, checkpoint, job.config.evaluate, manifest, vocabulary.train_events
        )
        results.write(folder, summary, merged, columns, vocabulary.values)
    write_report(job, summary, manifest, folder)
    return summary


def write_report(job: Job, summary: Summary, manifest: Manifest, folder: Path) -> Path:
    """report.html beside metrics.json, from files alone; by days also progressive.json, in the folder above."""
    history = read_metrics(job.run_dir / "metrics.jsonl")
    if isinstance(summary, RankingResults):
        by_day = day_results(history, tuple(summary.labels))
        if by_day is not None:
            write_json_atomically(folder.parent / "progressive.json", asdict(by_day))
        page = ranking_report.render(summary, folder, manifest.counts, job.config_values, history, by_day)
    else:
        ranks, popularity_ranks = results.read_ranks(folder)
        page = report.render(summary, manifest.counts, job.config_values, history, ranks, popularity_ranks)
    path = folder / "report.html"
    write_text_atomically(path, page)
    return path


def are_there(folder: Path, values: dict[str, Any]) -> bool:
    """Return whether a folder holds an evaluation with these values, and not another one or a part of it."""
    try:
        held = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same: bool = held == json.loads(json.dumps(values))
    return same and all((folder / name).exists() for name in ("per_user.parquet", "report.html"))


def summary_of(values: dict[str, Any]) -> Summary:
    """The content of a metrics.json, read back."""
    return RankingResults(**values) if values["task"] == "ranking" else Results(**values)


def _ticks(job: Job, manifest: Manifest) -> int | None:
    """Of the logs' times per second; none if these are not a clock's."""
    try:
        return ticks_per_second(manifest, job.config.model)
    except UserError:
        return None
