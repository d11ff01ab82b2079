"""Loss spikes: the rule, what is done about them, and that a resumed run decides as an uninterrupted one."""

import math
from pathlib import Path
from typing import Any

import pytest

from sharding.world import World
from tests.contracts.test_resume import fingerprint
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_job
from tests.support.rank_pool import RankPool
from trainer.config.guards import LossSpikesConfig
from trainer.config.job import Channel, Job
from trainer.data.stream.order import Position
from trainer.errors import LossSpikeError
from trainer.loop.loss_spikes import loss_limit
from trainer.loop.state import State, saved_state
from trainer.loop.train import Training
from trainer.metrics_log import read_metrics

FACTOR = 1000.0  # of the loss and the gradient of a step that is made a spike


def limit(recent: list[float], **settings: Any) -> float:
    return loss_limit(recent, LossSpikesConfig(**{"window": 8, "deviations": 4.0, **settings}))


def test_the_limit_is_the_median_and_a_multiple_of_the_median_deviation() -> None:
    recent = [1.0, 1.1, 0.9, 1.2, 0.8, 1.1, 0.9, 1.0]
    assert limit(recent) == pytest.approx(1.0 + 4.0 * 1.4826 * 0.1)
    assert limit(recent, deviations=8.0) == pytest.approx(1.0 + 8.0 * 1.4826 * 0.1)
    # A single spike among the losses hardly moves it.
    assert limit([*recent[:7], 1e9]) < 2.0
    # Losses that do not change leave room for rounding.
    assert limit([2.0] * 8) == pytest.approx(2.0 + 4.0 * 0.02)
    assert limit(recent[:7]) == math.inf


def test_recent_losses_are_saved_exactly_and_may_be_absent() -> None:
    state = State(step=3, recent_losses=(0.1, 1 / 3, 2.5))
    manifest: Any = type("Manifest", (), {"metrics": state.to_saved(), "step": 3})
    assert saved_state(manifest, Position(0, 0)) == state
    assert "recent_losses" not in State().to_saved()


def train(world: World, job: Job, spikes: list[int], stop_after: int | None = None) -> tuple[str, int, list[str]]:
    """Train with a loss that is far too large in some steps. Return the state, the skipped steps, and the warnings."""
    asked: list[None] = []
    warnings: list[str] = []

    def stop_requested() -> bool:
        asked.append(None)
        return stop_after is not None and len(asked) >= stop_after

    def receive(event: dict[str, Any]) -> None:
        if event["kind"] == "warning":
            warnings.append(event["text"])

    training = Training(job, world, Channel(send=receive, stop_requested=stop_requested))
    loss = training.built.model.loss

    def spiked(*arguments: Any) -> Any:
        # Only one rank's part of the global batch is bad.
        factor = FACTOR if training.state.step + 1 in spikes and world.rank == 0 else 1.0
        return factor * loss(*arguments)

    training.built.model.loss = spiked
    training.run()
    return fingerprint(training), training.state.skipped_steps, warnings


def job_in(folder: Path, name: str, **settings: Any) -> Job:
    guard = {"window": 8, **settings}
    return tiny_job(folder / name, folder / "dataset", train={"max_steps": 16}, guards={"loss_spikes": guard})


def test_a_spike_is_skipped_on_all_ranks_and_a_resumed_run_decides_alike(rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    whole = job_in(tmp_path, "whole", action="skip")
    results = rank_pool.run(2, train, whole, [11, 12, 14])
    assert [skipped for _, skipped, _ in results] == [3, 3]
    lines = [line for line in read_metrics(whole.run_dir / "metrics.jsonl") if line["kind"] == "skipped"]
    assert [(line["step"], line["reason"], len(line["row_ids"])) for line in lines] == [
        (step, "loss spike", 2) for step in (11, 12, 14)
    ]
    (warning,) = results[0][2]
    assert warning.startswith("step 11: the loss ")
    assert "No worker applied it" in warning
    # Stopped where the window is full only thanks to the losses in the checkpoint.
    pieces = job_in(tmp_path, "pieces", action="skip")
    rank_pool.run(2, train, pieces, [11, 12, 14], 9)
    resumed = rank_pool.run(2, train, pieces, [11, 12, 14])
    assert [state for state, _, _ in resumed] == [state for state, _, _ in results]


def test_a_spike_is_applied_with_a_warning_by_default_and_without_one_where_it_is_off(
    rank_pool: RankPool, tmp_path: Path
) -> None:
    tiny_dataset(tmp_path / "dataset")
    (warned,) = rank_pool.run(1, train, job_in(tmp_path, "warned"), [11])
    assert warned[1] == 0
    assert "It was applied" in warned[2][0]
    off = tiny_job(tmp_path / "off", tmp_path / "dataset", train={"max_steps": 16})
    assert rank_pool.run(1, train, off, [11])[0] == (warned[0], 0, [])


def test_too_many_spikes_in_a_row_end_the_training(rank_pool: RankPool, tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "dataset")
    job = job_in(tmp_path, "run", action="skip", max_skipped=2)
    with pytest.raises(LossSpikeError, match="3 steps in a row, up to step 12, were skipped"):
        rank_pool.run(2, train, job, [10, 11, 12])
