"""Prepare stage: makes or finds the dataset of a config, and prints a summary of it."""

from collections.abc import Callable

from cluster.config.run_config import Config
from cluster.data.prepare import Progress, prepare
from cluster.driver.new_logs import check_append
from cluster.driver.progress import View, announce
from cluster.driver.stage_record import StageRecord
from trainer.data.dataset import card
from trainer.data.dataset.log_checks import times_as_read
from trainer.data.dataset.manifest import Manifest


def run_prepare_stage(config: Config, view: View, connect: Callable[[], None] = lambda: None) -> Manifest:
    """Make or find the dataset, and record the stage."""
    announce(view, "prepare", "started")
    manifest = prepare_dataset(config, view, connect)
    StageRecord(config.run_dir).finish(
        "prepare", manifest.fingerprint, {"dataset": str(config.dataset_dir), "digest": manifest.digest}
    )
    announce(view, "prepare", "done")
    return manifest


def prepare_dataset(config: Config, view: View, connect: Callable[[], None] = lambda: None) -> Manifest:
    """Return the manifest of a config's dataset, made or found, and print a summary of it.

    connect: joins Ray; called before the first task, and not at all if the dataset exists or the logs are refused. By default
    Ray must be initialised.
    """

    def show(progress: Progress) -> None:
        view.update("prepare", progress.done, progress.total, f"{progress.stage}, {progress.rows:,} rows")

    view.print_phase(f"prepare: looking for the dataset of these logs in {config.dataset_dir}")
    manifest = prepare(
        config,
        show,
        before_append=lambda existing: check_append(config, existing),
        connect=connect,
        on_phase=lambda phase: view.print_phase(f"prepare: {phase}"),
    )
    view.clear()
    _print_summary(config, manifest, view)
    return manifest


def _print_summary(config: Config, manifest: Manifest, view: View) -> None:
    counts = manifest.counts
    rejected = sum(counts.rejected.values())
    reasons = "".join(f", {number:,} {reason}" for reason, number in counts.rejected.items())
    view.print_line(
        f"dataset {config.dataset_dir}: {counts.num_users:,} users, {counts.num_items:,} items, {counts.rows_kept:,} events; "
        f"{counts.train_events:,} train, {counts.validation_targets:,} validate, {counts.test_targets:,} test; "
        f"{rejected:,} rows rejected{reasons}"
    )
    for number, what in (
        (counts.users_without_targets, "users have fewer than two training events, so nothing is learned from them"),
        (counts.users_not_evaluated, "users have too few events to be evaluated"),
    ):
        if number:
            view.print_line(f"  note: {number:,} {what}")
    if (read_as := times_as_read(manifest)) is not None:
        view.print_line(f"  {read_as}")
    checks = card.read_checks(config.dataset_dir, manifest)
    if checks is not None:
        for check in checks:
            if check.verdict != "ok":
                view.print_line(f"  note: {check.verdict}: {check.title}: {check.found}")
        view.print_line(f"  card: {config.dataset_dir / card.PAGE}")
