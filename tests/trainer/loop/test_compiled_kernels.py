"""Compiled kernels of a training: the same on all ranks, one message where there are none, exact resume."""

from pathlib import Path

import numpy as np
import pytest

from models.compiled.attention import AttentionKernel
from models.compiled.build import KernelBuildError
from models.compiled.feed_forward import FeedForwardKernel
from models.compiled.kernels import CompiledKernels
from models.compiled.layers import LayerKernels
from models.compiled.softmax import SoftmaxKernels
from models.ranking.config import RankingConfig
from sharding.world import World
from tests.contracts.test_resume import train
from tests.contracts.test_world_size import losses
from tests.models.compiled.compiler import kernels_or_skip
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config, tiny_job
from trainer.config.checks import check_batches
from trainer.config.identity import identity
from trainer.config.train import TrainConfig
from trainer.errors import UserError
from trainer.loop.compiled_kernels import kernels_of_ranks

BOTH, ONE = (
    CompiledKernels(
        SoftmaxKernels(Path("a"), low),
        AttentionKernel(Path("c")),
        LayerKernels(Path("d"), FeedForwardKernel(Path("e"))),
    )
    for low in (Path("b"), None)
)


def agreed(world: World, of_ranks: list[CompiledKernels]) -> CompiledKernels:
    return kernels_of_ranks(world, lambda: of_ranks[world.rank])


def complaint(world: World, broken: int) -> str:
    """Return the message of this rank if one of them cannot compile."""

    def build() -> CompiledKernels:
        if world.rank == broken:
            raise KernelBuildError("there is no C++ compiler 'c++'")
        return BOTH

    with pytest.raises(UserError) as error:
        kernels_of_ranks(world, build)
    return str(error.value)


def test_products_in_bfloat16_are_used_where_all_ranks_have_them(rank_pool):
    assert rank_pool.run(2, agreed, [BOTH, BOTH]) == [BOTH, BOTH]
    assert rank_pool.run(2, agreed, [BOTH, ONE]) == [ONE, ONE]


def test_all_ranks_say_which_one_has_no_compiler(rank_pool):
    first, second = rank_pool.run(2, complaint, 1)
    assert first == second
    assert "train.compiled_kernels = true, and worker 1 cannot use compiled kernels: there is no C++ compiler" in first
    assert "install g++ there, or leave the setting out" in first


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["full_softmax", "sampled_softmax"])
def test_a_resumed_run_is_bit_identical_and_learns_as_without_kernels(rank_pool, tmp_path, kind, precision):
    kernels_or_skip()
    tiny_dataset(tmp_path / "dataset")

    def job(name: str, compiled: bool):
        settings = {"epochs": 1, "compiled_kernels": compiled, "precision": precision}
        return tiny_job(tmp_path / name, tmp_path / "dataset", train=settings, model={"objective": {"kind": kind}})

    whole = rank_pool.run(2, train, job("whole", True))
    rank_pool.run(2, train, job("pieces", True), 3)
    assert rank_pool.run(2, train, job("pieces", True)) == whole
    assert losses(tmp_path / "pieces").tolist() == losses(tmp_path / "whole").tolist()
    rank_pool.run(2, train, job("plain", False))
    tolerance = 1e-5 if precision == "float32" else 1e-2
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "plain"), rtol=tolerance)


def test_the_setting_identifies_a_run_only_where_it_is_on():
    def keys(**train) -> set[str]:
        return identity(tiny_config(Path("run"), Path("dataset"), train=train, **FULL)).keys()

    assert keys(compiled_kernels=True) - keys() == {"train.compiled_kernels"}


FULL = {"model": {"objective": {"kind": "full_softmax"}}}


def test_rankers_and_devices_without_kernels_are_refused():
    on = {"compiled_kernels": True}
    with pytest.raises(ValueError, match=r"train.compiled_kernels = true: rankers have no such kernels"):
        check_batches(TrainConfig.model_validate(on), RankingConfig.model_validate({}))
    with pytest.raises(UserError, match=r"train.compiled_kernels = true is for CPUs"):
        tiny_config(Path("run"), Path("dataset"), train=on, cluster={"gpus_per_worker": 1}, **FULL)
    tiny_config(Path("run"), Path("dataset"), train=on, **FULL)
