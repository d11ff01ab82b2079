"""Layers compiled by torch.compile: the same training within rounding, exact resume, one message where it cannot be."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from models.encoders.block import FeedForward
from models.encoders.tower import Tower
from models.layers.dropout import Dropout
from sharding.world import ALONE, World
from tests.contracts.test_resume import train
from tests.contracts.test_world_size import losses
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config, tiny_job
from trainer.config.identity import identity
from trainer.config.job import Job, Outcome
from trainer.errors import UserError
from trainer.loop.compiled_layers import compile_layers, no_compiler_reason

CPU = torch.device("cpu")
COMPILING_SECONDS = 600.0  # a graph takes 10 to 20 s, longer on a busy machine


def train_counting_graphs(world: World, job: Job, stop_after: int | None = None) -> tuple[tuple[Outcome, str], int]:
    """Train a job, and return the result and the number of graphs that were compiled."""
    counters.clear()
    result = train(world, job, stop_after)
    return result, int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical_and_learns_as_without_compiler(rank_pool, tmp_path):
    reason = no_compiler_reason(CPU)
    if reason is not None:
        pytest.skip(reason)
    tiny_dataset(tmp_path / "dataset")

    def job(name: str, compiled: bool) -> Job:
        return tiny_job(tmp_path / name, tmp_path / "dataset", train={"epochs": 1, "torch_compile": compiled})

    def run(name: str, compiled: bool, stop_after: int | None = None) -> tuple[tuple[Outcome, str], int]:
        result: tuple[tuple[Outcome, str], int] = rank_pool.run(
            1, train_counting_graphs, job(name, compiled), stop_after, deadline=COMPILING_SECONDS
        )[0]
        return result

    whole, num_graphs = run("whole", True)
    assert num_graphs > 0
    run("pieces", True, 3)
    assert run("pieces", True)[0] == whole
    assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()
    assert run("plain", False)[1] == 0
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "plain"), rtol=1e-5)


def complaint(world: World, broken: int) -> str:
    """Return the message of this rank if one of them has no compiler."""
    text = "there is no C++ compiler" if world.rank == broken else None
    model = torch.nn.ModuleList([FeedForward(4, 8, "relu", 0.0)])
    with (
        mock.patch("trainer.loop.compiled_layers.no_compiler_reason", return_value=text),
        pytest.raises(UserError) as error,
    ):
        compile_layers(model, world)
    return str(error.value)


def test_all_ranks_say_which_one_has_no_compiler(rank_pool):
    first, second = rank_pool.run(2, complaint, 1)
    assert first == second
    assert "train.torch_compile = true, and worker 1 cannot compile: there is no C++ compiler" in first


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(UserError, match="the model has no layers to compile"):
        compile_layers(torch.nn.ModuleList([Dropout(0.5), Tower(4, [])]), ALONE)


def test_the_settings_identify_a_run_only_where_they_are_on():
    def keys(**train) -> set[str]:
        gpus = {"gpus_per_worker": 1}
        return identity(tiny_config(Path("run"), Path("dataset"), train=train, cluster=gpus)).keys()

    assert keys(torch_compile=True, tf32=True) - keys() == {"train.torch_compile", "train.tf32"}
