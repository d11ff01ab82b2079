"""The functions run, prepare, train, evaluate and recommend: what the commands of the same name do, with values as results.

Each takes the lock of the run folder, records its stages there, and does not repeat what is done: calling it again resumes.
Ctrl-C during training saves a checkpoint and raises StoppedError; a second one ends at once with KeyboardInterrupt.
Signals are only handled in the main thread, and their handlers are restored at the end.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.config.run_config import Config
from cluster.doctor.packages import RAY, TRAINING, check_installed
from cluster.errors import as_user_error
from cluster.ray_cluster.token import send_token_if_present
from shoal.progress.events import Listener
from shoal.results import (
    Dataset,
    Evaluation,
    Recommendations,
    RunResult,
    Training,
    dataset_of,
    evaluation_of,
    recommendations_of,
    training_of,
)
from trainer.storage.objects.paths import local_path

if TYPE_CHECKING:
    from cluster.driver.progress import View


def run(config: Config, *, quiet: bool = False, on_event: Listener | None = None) -> RunResult:
    """Prepare, train, evaluate and report.

    Args:
        config: settings of the run. The results are stored in `config.run.dir`.
        quiet: whether to print nothing.
        on_event: called with each event (shoal.events). An exception that it raises ends the command.

    Raises:
        UserError: the user must change something; the message says what.
        StoppedError: Ctrl-C or SIGTERM stopped training, with a checkpoint.
        RunFailedError: a worker failed.
    """
    with _command("run", TRAINING, quiet, on_event) as view:
        from cluster.driver import driver
        from trainer.data.dataset.manifest import read_manifest

        finished = driver.run(config, view)
        return RunResult(
            config.run_dir,
            dataset_of(config.dataset_dir, read_manifest(config.dataset_dir)),
            training_of(config.run_dir, finished.outcome),
            evaluation_of(finished.report.parent, asdict(finished.results)),
        )


def prepare(config: Config, *, quiet: bool = False, on_event: Listener | None = None) -> Dataset:
    """Check the event logs and turn them into a sequence dataset. Arguments and errors are those of `run`."""
    with _command("prepare", RAY, quiet, on_event) as view:
        from cluster.driver import driver

        return dataset_of(config.dataset_dir, driver.run_prepare(config, view))


def train(config: Config, *, quiet: bool = False, on_event: Listener | None = None) -> Training:
    """Train on the prepared dataset, from the newest checkpoint on. Arguments and errors are those of `run`."""
    with _command("train", TRAINING, quiet, on_event) as view:
        from cluster.driver import driver

        return training_of(config.run_dir, driver.run_train(config, view))


def evaluate(
    config: Config,
    split: Literal["validation", "test"] = "test",
    checkpoint: str | Path | None = None,
    *,
    logs: str | Path | Sequence[str | Path] | None = None,
    logs_settings: Mapping[str, Any] | None = None,
    dataset: str | Path | None = None,
    quiet: bool = False,
    on_event: Listener | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on held-out events, on later logs or on another dataset.

    Args:
        config: settings of the run.
        split: which held-out events.
        checkpoint: name ("step_000001000") or path of a checkpoint; by default the best, or the newest if none is marked best.
        logs: files, folders or globs of later logs to evaluate on. They are prepared with the vocabularies of the run.
        logs_settings: settings of these logs that differ from those of the run, such as {"logs.user": "uid"}.
        dataset: folder of another prepared dataset to evaluate on, which must have the same vocabularies.
        quiet: as for `run`.
        on_event: as for `run`.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged. It is a UserError.
        UserError, RunFailedError: as for `run`.
    """
    name = None if checkpoint is None else str(checkpoint)
    with _command("evaluate", TRAINING, quiet, on_event) as view:
        from cluster.driver import driver
        from cluster.driver.other_data import other_data

        data = other_data(config, _paths(logs), dataset, logs_settings or {})
        results, report = driver.run_evaluate(config, split, name, view, data)
        return evaluation_of(report.parent, asdict(results))


def recommend(
    config: Config,
    *,
    k: int = 10,
    users: str | Path = "all",
    filter_viewed: bool | None = None,
    items: str | Path | None = None,
    item_to_item: bool = False,
    label: str | Mapping[str, float] | None = None,
    at: int | str | None = None,
    on_unknown: Literal["raise", "warn", "skip"] = "raise",
    history: str | Path | Sequence[str | Path] | None = None,
    logs_settings: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    on_event: Listener | None = None,
) -> Recommendations:
    """Write recommendations for many users to Parquet files, on the workers. `shoal.load` recommends in this process.

    Args:
        config: settings of the run.
        k: number of items per user.
        users: file of users, or "all" users of the dataset.
        filter_viewed: whether to leave out items of the user's history; by default True, and False for rankers.
        items: file of the only items to recommend. Rankers need it. With `item_to_item` the items to compare with all.
        item_to_item: whether to write similar items of items instead.
        label: for rankers, the label that orders the candidates by its probability, or a dictionary from labels to weights.
        at: time of the requests: ISO text, or an integer in the unit of the logs' times. Later events are left out.
        on_unknown: reaction to users or items of the files that the dataset does not have.
        history: logs with the events of the histories, in the forms of logs.path; by default those of the dataset.
        logs_settings: settings of `history` that differ from those of the run, as for `evaluate`.
        checkpoint: as for `evaluate`.
        out: folder to write; by default recommendations/ in the run folder.
        quiet: as for `run`.
        on_event: as for `run`.

    Raises:
        UserError, CheckpointError, RunFailedError: as for `evaluate`.
    """
    labels = dict(label) if isinstance(label, Mapping) else {} if label is None else {label: 1.0}
    with _command("recommend", TRAINING, quiet, on_event) as view:
        from cluster.driver import driver
        from cluster.driver.other_data import given_histories
        from trainer.recommend.request import Options

        files = str(users), None if items is None else str(items)
        options = Options(k, *files, item_to_item, filter_viewed, on_unknown, at, labels)
        name = None if checkpoint is None else str(checkpoint)
        given = given_histories(config, _paths(history), logs_settings or {})
        manifest, folder = driver.run_recommend(
            config, options, name, None if out is None else local_path(out, "out"), view, given
        )
        return recommendations_of(folder, asdict(manifest))


def _paths(logs: str | Path | Sequence[str | Path] | None) -> list[str]:
    """Return the paths of logs as a list of text."""
    return [str(path) for path in ([logs] if isinstance(logs, str | Path) else logs or ())]


@contextmanager
def _command(name: str, modules: tuple[str, ...], quiet: bool, listener: Listener | None) -> Iterator["View"]:
    """Provide the view of a command, and turn errors that a user can correct into UserError."""
    check_installed(name, modules)
    if "ray" not in sys.modules:  # Ray reads its environment when it is imported; later changes would contradict it
        send_token_if_present()
    from shoal.progress.view import ListeningView  # plots and tables, which `import shoal` need not wait for

    try:
        with ListeningView(quiet, listener) as view:
            yield view
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from error
