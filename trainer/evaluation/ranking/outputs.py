"""Files that an evaluation of a ranking model leaves. No torch.

They are metrics.json, per_impression.parquet, per_user.parquet, examples.json, report.html, and after daily training
progressive.json. next_item/outputs.py has the same functions; trainer/tasks/outputs.py chooses between them.
"""

import json
from dataclasses import asdict
from pathlib import Path

from models.ranking.config import RankingConfig, learned_labels
from trainer.config.job import Job
from trainer.data.dataset.manifest import Manifest, used_features
from trainer.data.dataset.splits import Split
from trainer.data.dataset.vocabulary import read_vocabulary
from trainer.data.inputs import clock_ticks
from trainer.evaluation import examples
from trainer.evaluation.ranking import report, results, tables
from trainer.evaluation.ranking.day_results import day_results
from trainer.evaluation.ranking.example_users import examples_of
from trainer.evaluation.ranking.results import RankingResults
from trainer.evaluation.ranking.scored import merge_parts
from trainer.evaluation.ranking.slices import BUILT_IN, slices_by_features
from trainer.evaluation.slice_features import slice_features
from trainer.evaluation.training_cost import write_cost
from trainer.metrics_log import read_metrics
from trainer.storage.files import write_json_atomically


def write_results(job: Job, split: Split, checkpoint: str, parts: Path, manifest: Manifest) -> RankingResults:
    """Merge the workers' partial results in `parts`, and write everything except the page into the folder above.

    Raises UserError if there is nothing to merge.
    """
    assert isinstance(job.config.model, RankingConfig)
    folder = parts.parent
    unknown = bool(used_features(manifest))
    vocabulary = read_vocabulary(job.dataset_dir, manifest, with_unknown=unknown)
    labels = tuple(learned_labels(job.config.model, manifest.labels["names"]))
    impressions = merge_parts(parts, labels)
    ticks = clock_ticks(manifest, job.config.model)
    chosen = job.config.evaluate.slices
    features = slice_features(manifest, chosen, BUILT_IN, impressions=True)
    summary = results.summarize(
        impressions,
        split,
        checkpoint,
        manifest,
        job.config.model.max_history,
        ticks,
        chosen,
        list(slices_by_features(impressions, features, job.dataset_dir, manifest, unknown)),
    )
    users = examples_of(impressions, job.dataset_dir, manifest, job.config.logs, vocabulary.values)
    write_json_atomically(folder / examples.FILE, users)
    write_cost(job, manifest, folder)
    tables.write(folder, summary, impressions, vocabulary.values)
    return summary


def render_report(job: Job, summary: RankingResults, manifest: Manifest, folder: Path) -> str:
    """Return the page of an evaluation from the files of its folder and of the run.

    After daily training also write progressive.json into the folder above.
    """
    history = read_metrics(job.run_dir / "metrics.jsonl")
    by_day = day_results(history, tuple(summary.labels))
    if by_day is not None:
        write_json_atomically(folder.parent / "progressive.json", asdict(by_day))
    users = json.loads((folder / examples.FILE).read_text(encoding="utf-8"))
    return report.render(summary, job, manifest, folder, history, by_day, users)
