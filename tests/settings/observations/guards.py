"""Observations of guards and of retries for the settings' tests: loss spikes, and attempts after storage errors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
from torch.distributed.checkpoint.filesystem import FileSystem

from cluster.config.run_config import Config
from tests.settings.lab import Lab
from tests.settings.observations.training import training_of
from trainer.errors import CheckpointError, LossSpikeError, UserError
from trainer.storage.retries import Retries

SPIKE = 12  # the step with a far too large loss


def after_a_spike(lab: Lab, config: Config) -> tuple[int, int, str]:
    """Return (warnings of a spike, skipped steps, end) of a training with one spike."""
    events: list[dict[str, Any]] = []
    training = training_of(lab, lab.job(config), events)
    loss = training.built.model.loss

    def spiked(*arguments: Any) -> Any:
        return loss(*arguments) * (1e3 if training.state.step == SPIKE - 1 else 1.0)

    with mock.patch.object(training.built.model, "loss", spiked):
        try:
            end = training.run().reason
        except LossSpikeError:
            end = "LossSpikeError"
    warnings = sum("guards.loss_spikes" in event.get("text", "") for event in events)
    return warnings, training.state.skipped_steps, end


@contextmanager
def _waits() -> Iterator[list[float]]:
    """Record the waits between attempts, without waiting."""
    waits: list[float] = []
    with mock.patch(
        "trainer.config.storage.Retries", lambda attempts, wait: Retries(attempts, wait, sleep=waits.append)
    ):
        yield waits


def _fail(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.EIO, "Input/output error")


def waits_in_writing(lab: Lab, config: Config) -> list[float]:
    """Return the waits between the attempts to write a checkpoint where none succeeds."""
    with _waits() as waits:
        training = training_of(lab, lab.job(config), [])
        with mock.patch.object(FileSystem, "create_stream", _fail):
            try:
                training.run()
            except CheckpointError:
                return waits
    raise AssertionError("the checkpoint was written")


def waits_in_reading(lab: Lab, config: Config) -> list[float]:
    """Return the waits between the attempts to read a row group where none succeeds."""
    with _waits() as waits:
        training = training_of(lab, lab.job(config), [])
        with mock.patch.object(pq.ParquetFile, "read_row_groups", _fail):
            try:
                training.run()
            except UserError:
                return waits[: len(waits) // 2]  # the second half is that of the first row group alone
    raise AssertionError("the dataset was read")
