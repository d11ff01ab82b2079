"""Trackers of experiments: MLflow and Weights & Biases receive the numbers of metrics.jsonl, from the first rank.

A run that is resumed continues its runs there; their ids are in tracking.json in the run folder. A tracker that fails later, for
example because its server is gone, is reported once and then left out: no training ends for it.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from trainer.config.tracking import TrackingConfig
from trainer.errors import UserError, first_line
from trainer.settings import flatten
from trainer.storage.files import write_json_atomically
from trainer.storage.objects.paths import ObjectPath

FILE = "tracking.json"


class Tracker(Protocol):
    """A tracker of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of a step by name."""

    def close(self) -> None:
        """End the run there."""


def check_trackers(config: TrackingConfig) -> None:
    """Raise UserError if a configured tracker is not installed. Called on all ranks, so that none waits for another."""
    for setting, module in (("mlflow", "mlflow"), ("wandb", "wandb")):
        if getattr(config, setting) is not None and find_spec(module) is None:
            raise UserError(
                f"tracking.{setting}: the package {module} is not installed on the workers; install it there, or leave the "
                "setting out"
            )


class Trackers:
    """All configured trackers of a run.

    warn: called with a line if a tracker fails and is left out from then on.
    """

    def __init__(
        self, config: TrackingConfig, run_dir: Path, settings: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._warn = warn
        self._trackers: dict[str, Tracker] = {}
        ids = _read_ids(run_dir)
        if config.mlflow is not None:
            self._open("mlflow", lambda: Mlflow(config, run_dir, settings, ids))
        if config.wandb is not None:
            self._open("wandb", lambda: Wandb(config, run_dir, settings, ids))
        if ids:
            write_json_atomically(run_dir / FILE, ids)

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Send the numbers of a line of metrics.jsonl, named kind/name."""
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, tracker in list(self._trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.log(step, numbers))  # type: ignore[misc]

    def close(self) -> None:
        """End the runs."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.close)

    def _open(self, name: str, make: Callable[[], Tracker]) -> None:
        def add() -> None:
            self._trackers[name] = make()

        self._guard(name, add)

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - another library with a network: no error of it may end a training
            self._trackers.pop(name, None)
            self._warn(f"tracking.{name}: {first_line(error)}; training continues without it")


class Mlflow:
    """A run of MLflow."""

    def __init__(self, config: TrackingConfig, run_dir: Path, settings: dict[str, Any], ids: dict[str, str]) -> None:
        import mlflow

        self._client = mlflow.MlflowClient(tracking_uri=config.mlflow)
        self._entities = mlflow.entities
        if "mlflow" not in ids:
            existing = self._client.get_experiment_by_name(config.mlflow_experiment)
            experiment = (
                existing.experiment_id if existing else self._client.create_experiment(config.mlflow_experiment)
            )
            ids["mlflow"] = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
            params = [mlflow.entities.Param(key, str(value)[:500]) for key, value in flatten(settings).items()]
            for first in range(0, len(params), 100):  # the most that one request may have
                self._client.log_batch(ids["mlflow"], params=params[first : first + 100])
        self._run = ids["mlflow"]
        self._client.update_run(self._run, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of a step by name."""
        now = int(time.time() * 1000)
        # Its names have no @.
        metrics = [self._entities.Metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """End the run there."""
        self._client.set_terminated(self._run)


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, config: TrackingConfig, run_dir: Path, settings: dict[str, Any], ids: dict[str, str]) -> None:
        import wandb

        entity, _, project = str(config.wandb).rpartition("/")
        ids.setdefault("wandb", uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            name=run_dir.name,
            id=ids["wandb"],
            resume="allow" if config.wandb_mode == "online" else None,
            mode=config.wandb_mode,
            # Its own files are copies of what it sends. They cannot be on an object storage.
            dir=tempfile.gettempdir() if isinstance(run_dir, ObjectPath) else str(run_dir),
            config=settings,
            settings=wandb.Settings(console="off", silent=True),
        )
        # Steps of a run that was resumed from an earlier checkpoint go back, which its own step must not.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of a step by name."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


def _read_ids(run_dir: Path) -> dict[str, str]:
    """Return the ids of the run at each tracker, as earlier commands wrote them."""
    try:
        values = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in values.items()}
