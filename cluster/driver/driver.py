"""Driver: runs the stages prepare, train and evaluate in order, each recorded in the run folder.

Rerun a command to resume: a stage is not run again if its inputs have not changed since it was done. Ray is joined, and workers
are launched, once a stage needs them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.config.run_config import Config
from cluster.driver.evaluate_stage import Evaluated, run_evaluate_stages
from cluster.driver.explain_stage import run_explain_stage
from cluster.driver.other_data import LaterLogs, OtherData, config_with
from cluster.driver.prepare_stage import run_prepare_stage
from cluster.driver.progress import View
from cluster.driver.prune_stage import PruneOptions, run_prune_stage
from cluster.driver.rank_logs import DriverLog, logs_folder
from cluster.driver.recommend_stage import run_recommend_stage
from cluster.driver.run_folder import open_run
from cluster.driver.run_lock import locked
from cluster.driver.stop_request import obeying_requests
from cluster.driver.train_stage import run_train_stage
from cluster.ray_cluster.session import RaySession
from cluster.workers.group import Workers
from trainer.config.job import Outcome
from trainer.data.dataset.manifest import Manifest, read_manifest
from trainer.data.dataset.splits import Split
from trainer.explanation.command.folder import ExplanationsManifest
from trainer.explanation.command.request import Options as ExplainOptions
from trainer.pages.text import duration_text
from trainer.pruning.results import PruningResults
from trainer.recommend.folder import RecommendationsManifest
from trainer.recommend.request import Options
from trainer.tasks.results import Summary


@dataclass(frozen=True)
class Finished:
    """Result of a whole run."""

    outcome: Outcome
    results: Summary
    report: Path


def run(config: Config, view: View) -> Finished:
    """Run all stages in order, under the run folder's lock, in one Ray session and with the same workers."""
    started = time.monotonic()
    with _opened(config, view) as (session, workers):
        manifest = run_prepare_stage(config, view, session.connect)
        outcome = run_train_stage(config, manifest, workers, view)
        split: Split = "test" if manifest.counts.test_targets else "validation"
        results, report = run_evaluate_stages(config, [split], None, workers, view)[split]
    view.print_line(f"run {config.run_dir}: finished in {duration_text(time.monotonic() - started)}")
    return Finished(outcome, results, report)


def run_prepare(config: Config, view: View) -> Manifest:
    """Run the prepare stage."""
    with _opened(config, view) as (session, _):
        return run_prepare_stage(config, view, session.connect)


def run_train(config: Config, view: View) -> Outcome:
    """Train on a prepared dataset. Raises UserError if there is none."""
    with _opened(config, view) as (_, workers):
        return run_train_stage(config, read_manifest(config.dataset_dir), workers, view)


def run_evaluate(
    config: Config, split: Split, name: str | None, view: View, data: OtherData | None = None
) -> tuple[Summary, Path]:
    """Evaluate the named checkpoint, or the best, on a split of the run's dataset or of other data.

    Returns the results and the report.
    """
    with _opened(config, view) as (session, workers):
        if data is None:
            return run_evaluate_stages(config, [split], name, workers, view)[split]
        other = Evaluated(data.name, config_with(config, data, view, session.connect))
        return run_evaluate_stages(config, [split], name, workers, view, other)[split]


def run_recommend(
    config: Config, options: Options, name: str | None, out: Path | None, view: View, histories: LaterLogs | None = None
) -> tuple[RecommendationsManifest, Path]:
    """Write recommendations of the named checkpoint, or of the best, to the users of the run's dataset or of given histories.

    Returns the description of the recommendations and their folder.
    """
    with _opened(config, view) as (session, workers):
        given = None if histories is None else config_with(config, histories, view, session.connect)
        return run_recommend_stage(config, options, name, out, workers, view, given)


def run_explain(
    config: Config, options: ExplainOptions, name: str | None, out: Path | None, view: View
) -> tuple[ExplanationsManifest, Path]:
    """Write explanations of the recommendations of the named checkpoint, or of the best.

    Returns the description of the explanations and their folder.
    """
    with _opened(config, view) as (_, workers):
        return run_explain_stage(config, options, name, out, workers, view)


def run_prune(
    config: Config, options: PruneOptions, name: str | None, out: Path | None, view: View
) -> tuple[PruningResults, Path]:
    """Prune the named checkpoint, or the best, and compare the pruned models with it. Returns the results and their page."""
    with _opened(config, view) as (_, workers):
        return run_prune_stage(config, options, name, out, workers, view)


def run_prepared(config: Config, splits: list[Split], view: View) -> tuple[Outcome, dict[Split, Summary]]:
    """Train on a prepared dataset, and evaluate the best checkpoint on each of the splits."""
    with _opened(config, view) as (_, workers):
        outcome = run_train_stage(config, read_manifest(config.dataset_dir), workers, view)
        evaluated = run_evaluate_stages(config, splits, None, workers, view)
    return outcome, {split: results for split, (results, _) in evaluated.items()}


@contextmanager
def _opened(config: Config, view: View) -> Iterator[tuple[RaySession, Workers]]:
    """Hold the run folder's lock for the body; yield a session and workers that start when a stage needs them."""
    with locked(config.run_dir):
        open_run(config)
        with (
            DriverLog(config.run_dir) as log,
            obeying_requests(config.run_dir),
            RaySession(config.cluster, view.print_phase) as session,
            Workers(config.cluster, session.connect, view.print_phase, logs_folder(config.run_dir)) as workers,
        ):
            view.keep_lines(log.write)
            yield session, workers
