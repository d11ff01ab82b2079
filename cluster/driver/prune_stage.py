"""Prune stage: measures heads and blocks, prunes those that contribute least, and compares the pruned models with the whole one.

Each pruned model is a run of its own in the output folder. Whatever is done already is not repeated.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.config.run_config import Config, check_config
from cluster.driver.evaluate_stage import find_checkpoint, run_evaluate_stages
from cluster.driver.progress import View, announce
from cluster.driver.run_folder import open_run
from cluster.driver.run_lock import locked
from cluster.driver.stage_inputs import contributions_inputs
from cluster.driver.stage_record import StageRecord
from cluster.driver.train_stage import planned_job, run_train_stage
from cluster.workers import jobs
from cluster.workers.group import Workers
from models.ranking.config import RankingConfig, learned_labels
from trainer.checkpoint.folder import StoredCheckpoint
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import Split
from trainer.errors import UserError
from trainer.pruning import outputs
from trainer.pruning.choice import Level, Measured, all_kept, levels_of, measured_from, units_of
from trainer.pruning.results import UNPRUNED, PrunedModel, PruningResults, rows_of
from trainer.tasks.metrics import selection_names, unusable_reason

STAGE = "prune"
FOLDER = "pruned"  # in the run folder


@dataclass(frozen=True)
class PruneOptions:
    """Options of the command."""

    # Numbers of heads that are pruned, a model for each.
    heads: tuple[int, ...]
    # Numbers of blocks that are pruned, a model for each.
    blocks: tuple[int, ...]
    # Training steps after pruning, in further models; 0: none.
    steps: int = 0
    # Validation metric by which contributions are measured; None: that of early stopping, or the default of the task.
    metric: str | None = None


def run_prune_stage(
    config: Config, options: PruneOptions, name: str | None, out: Path | None, workers: Workers, view: View
) -> tuple[PruningResults, Path]:
    """Return the results of pruning, and the path of their page.

    Args:
        config: of the run of the whole model.
        options: what is asked for.
        name: of a checkpoint, as find_checkpoint takes it; None: the best.
        out: the folder to write; None: the one in the run folder.
        workers: launched only if something is left to be done.
        view: where progress is shown.

    Raises:
        UserError: the options do not fit the model.
    """
    manifest = read_manifest(config.dataset_dir)
    check_options(config, options, manifest)
    checkpoint = find_checkpoint(config, name, view.on_event)
    folder = (config.run_dir / FOLDER if out is None else out).resolve()
    metric = metric_for(config, options)
    measured = _measured(config, checkpoint, manifest, metric, workers, view)
    levels = levels_of(config.model.encoder, measured, options.heads, options.blocks)
    split: Split = "test" if manifest.counts.test_targets else "validation"
    _, report = run_evaluate_stages(config, [split], name, workers, view)[split]
    unpruned = PrunedModel(UNPRUNED, UNPRUNED, config, report.parent, 0)
    pruned = [_evaluated(config, checkpoint, level, 0, folder, split, workers, view) for level in levels]
    if options.steps:
        whole = Level(UNPRUNED, UNPRUNED, all_kept(config.model.encoder))
        pruned += [
            _evaluated(config, checkpoint, level, options.steps, folder, split, workers, view)
            for level in (whole, *levels)
        ]
    rows, num_users = rows_of(unpruned, pruned, metric, config.dataset_dir, manifest)
    unit = "impression" if isinstance(config.model, RankingConfig) else "event"
    results = PruningResults(str(config.run_dir), checkpoint.path.name, split, num_users, unit, measured, rows)
    return results, outputs.write(results, folder)


def check_options(config: Config, options: PruneOptions, manifest: Manifest) -> None:
    """Raise UserError for options that do not fit the model or its dataset."""
    problem = None
    if not options.heads and not options.blocks:
        problem = "--heads and --blocks: give the number of heads or blocks to prune, or several"
    elif min((*options.heads, *options.blocks)) < 1 or options.steps < 0:
        problem = "--heads, --blocks and --steps: must be at least 1"
    elif len(set(options.heads)) < len(options.heads) or len(set(options.blocks)) < len(options.blocks):
        problem = "--heads and --blocks: name each number once"
    elif isinstance(config.model, RankingConfig) and config.model.interest.kind == "none":
        problem = "prune: model.interest.kind = none: this ranker has no encoder"
    elif not units_of(config.model.encoder):
        problem = "prune: the encoder has no blocks"
    elif not manifest.counts.validation_targets:
        problem = "prune: the dataset has no validation events, by which contributions are measured; set split to hold some out"
    elif options.steps and config.train.days is not None:
        problem = "--steps: daily training has no number of steps; train the pruned run on with `shoal train`"
    if problem is not None:
        raise UserError(problem)


def metric_for(config: Config, options: PruneOptions) -> str:
    """Return the validation metric by which contributions are measured. Raises UserError for an unknown one."""
    model = config.model
    labels = tuple(learned_labels(model, config.logs.labels)) if isinstance(model, RankingConfig) else ()
    if options.metric is not None:
        reason = unusable_reason(options.metric, model.task, config.evaluate.ks, labels)
        if reason is not None:
            raise UserError(f"--metric {options.metric}: {reason}")
        return options.metric
    if config.train.early_stopping is not None:
        return config.train.early_stopping.metric
    names = selection_names(model.task, config.evaluate.ks, labels)
    return "ndcg@10" if "ndcg@10" in names else names[0]


def _measured(
    config: Config, checkpoint: StoredCheckpoint, manifest: Manifest, metric: str, workers: Workers, view: View
) -> Measured:
    """Return the contributions of all heads and blocks, measured now or before."""
    inputs = contributions_inputs(config, checkpoint, manifest, metric)
    record = StageRecord(config.run_dir)
    done = record.result(STAGE, inputs)
    if done is not None:
        view.print_line(f"prune: contributions measured before, of {checkpoint.path.name}")
        announce(view, STAGE, "done before")
        return measured_from(done)
    record.begin(STAGE, inputs)
    announce(view, STAGE, "started")
    job, _ = planned_job(config)
    asked = jobs.ContributionsJob(job, StoredCheckpoint(checkpoint.path.resolve(), checkpoint.manifest), metric)
    measured: Measured = record.run_stages(
        {STAGE: inputs}, lambda: workers.run(jobs.contributions, asked, view.on_event)[0]
    )
    view.clear()
    record.finish(STAGE, inputs, asdict(measured))
    announce(view, STAGE, "done")
    view.print_line(f"prune: {len(measured.contributions)} heads and blocks measured by validation {metric}")
    return measured


def _evaluated(
    config: Config,
    checkpoint: StoredCheckpoint,
    level: Level,
    steps: int,
    folder: Path,
    split: Split,
    workers: Workers,
    view: View,
) -> PrunedModel:
    """Make the run of a pruned model, train it for some steps, and evaluate it."""
    from trainer.pruning.new_run import pruned_values, write_pruned_checkpoint  # loads torch

    name = f"{level.name}-{steps}-steps" if steps else level.name
    title = f"{level.title}, {steps:,} steps later" if steps else level.title
    values = pruned_values(config, level.kept, folder / name, config.dataset_dir.resolve(), checkpoint, steps)
    pruned = check_config(values, f"the config of {name}")
    job, planned = planned_job(pruned)
    with locked(pruned.run_dir):
        open_run(pruned)
        width = config.tables["item"].dim
        write_pruned_checkpoint(checkpoint, config.model.encoder, width, level.kept, job, planned.plan)
        view.print_line(f"prune: {title}: {pruned.run_dir}")
        if steps:
            run_train_stage(pruned, read_manifest(pruned.dataset_dir), workers, view)
        _, report = run_evaluate_stages(pruned, [split], None, workers, view)[split]
    return PrunedModel(name, title, pruned, report.parent, steps)
