"""Files that an evaluation of a next-item model leaves: metrics.json, per_user.parquet, examples.json, timing.json, report.html.

No torch.
ranking/outputs.py has the same functions; trainer/tasks/outputs.py chooses between them.
"""

import json
from dataclasses import replace
from pathlib import Path

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.inputs import clock_ticks
from trainer.evaluation import examples
from trainer.evaluation.next_item import report, results
from trainer.evaluation.next_item.baselines.notes import read_notes
from trainer.evaluation.next_item.listed import candidates_text
from trainer.evaluation.next_item.merged_rows import merge_parts
from trainer.evaluation.next_item.read_similarity import read_similarity
from trainer.evaluation.next_item.results import Results
from trainer.evaluation.next_item.slices import BUILT_IN
from trainer.evaluation.slice_features import slice_features
from trainer.evaluation.training_cost import write_cost
from trainer.metrics_log import read_metrics
from trainer.storage.files import write_json_atomically

TIMING = "timing.json"  # seconds on the first worker: "model", "counting" of all baselines, and the ranking of each


def write_results(job: Job, split: Split, checkpoint: str, parts: Path, manifest: Manifest) -> Results:
    """Merge the workers' partial results in `parts`, and write everything except the page into the folder above.

    Raises UserError if there is nothing to merge.
    """
    folder = parts.parent
    unknown = bool(used_features(manifest))
    vocabulary = read_vocabulary(job.dataset_dir, manifest, with_unknown=unknown)
    merged = merge_parts(parts)
    features = slice_features(manifest, job.config.evaluate.slices, BUILT_IN)
    config = job.config.evaluate
    evaluated = results.Evaluated(
        split,
        checkpoint,
        config,
        manifest,
        vocabulary.train_events,
        candidates_text(config.candidates, job.dataset_dir, manifest, unknown),
        clock_ticks(manifest, job.config.model),
        read_similarity(job.dataset_dir, manifest, vocabulary.num_items),
        results.num_repeats(parts),
    )
    summary, columns = results.summarize(merged, evaluated, features, job.dataset_dir)
    notes = read_notes(parts)
    summary = replace(summary, baseline_notes={"used": notes.used, "left_out": notes.left_out})
    write_json_atomically(folder / TIMING, notes.seconds)
    users = results.examples_of(merged, split, job.dataset_dir, manifest, job.config.logs, vocabulary.values)
    write_json_atomically(folder / examples.FILE, users)
    write_cost(job, manifest, folder)
    results.write(folder, summary, merged, columns, vocabulary.values)
    return summary


def render_report(job: Job, summary: Results, manifest: Manifest, folder: Path) -> str:
    """Return the page of an evaluation from the files of its folder and of the run."""
    timing = folder / TIMING
    page = report.ReportInput(
        summary,
        job,
        manifest,
        folder,
        read_metrics(job.run_dir / "metrics.jsonl"),
        results.read_target_ranks(folder),
        json.loads((folder / examples.FILE).read_text(encoding="utf-8")),
        json.loads(timing.read_text(encoding="utf-8")) if timing.exists() else {},
    )
    return report.render(page)
