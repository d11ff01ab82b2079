"""Files that an evaluation of a next-item model leaves: metrics.json, per_user.parquet, examples.json, report.html. No torch.

ranking/outputs.py has the same functions; trainer/tasks/outputs.py chooses between them.
"""

import json
from pathlib import Path

from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.evaluation import examples
from trainer.evaluation.next_item import report, results
from trainer.evaluation.next_item.listed import candidates_text
from trainer.evaluation.next_item.results import Results
from trainer.metrics_log import read_metrics
from trainer.storage.files import write_json_atomically


def write_results(job: Job, split: Split, checkpoint: str, parts: Path, manifest: Manifest) -> Results:
    """Merge the workers' partial results in `parts`, and write everything except the page into the folder above.

    Raises UserError if there is nothing to merge.
    """
    folder = parts.parent
    vocabulary = read_vocabulary(job.dataset_dir, manifest, with_unknown=bool(used_features(manifest)))
    merged = results.merge_parts(parts)
    config = job.config.evaluate
    candidates = candidates_text(config.candidates, job.dataset_dir, manifest, bool(used_features(manifest)))
    dropped = results.num_repeats(parts)
    summary, columns = results.summarize(
        merged, split, checkpoint, config, manifest, vocabulary.train_events, candidates, dropped
    )
    users = results.examples_of(merged, split, job.dataset_dir, manifest, job.config.logs, vocabulary.values)
    write_json_atomically(folder / examples.FILE, users)
    results.write(folder, summary, merged, columns, vocabulary.values)
    return summary


def render_report(job: Job, summary: Results, manifest: Manifest, folder: Path) -> str:
    """Return the page of an evaluation from the files of its folder and of the run."""
    target_ranks, popularity_ranks = results.read_target_ranks(folder)
    return report.render(
        summary,
        job,
        manifest,
        folder,
        read_metrics(job.run_dir / "metrics.jsonl"),
        target_ranks,
        popularity_ranks,
        json.loads((folder / examples.FILE).read_text(encoding="utf-8")),
    )
