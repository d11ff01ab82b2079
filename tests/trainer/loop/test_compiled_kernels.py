"""Compiled kernels of a training: the same on all ranks, one message where there are none, exact resume."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batches.history_batch import build_batch
from models.compiled.attention import AttentionKernel
from models.compiled.build import KernelBuildError
from models.compiled.feed_forward import FeedForwardKernel
from models.compiled.kernels import CompiledKernels
from models.compiled.layers import LayerKernels
from models.compiled.projections import ProjectionKernels
from models.compiled.softmax import SoftmaxKernels
from models.config import NextItemConfig
from models.features.catalogue import Catalogue
from models.next_item.model import NextItemModel
from models.ranking.config import RankingConfig
from models.tables import TableSpec
from sharding.world import World
from tests.contracts.test_resume import train
from tests.contracts.test_world_size import losses
from tests.models.compiled.compiler import kernels_or_skip
from tests.support.datasets import tiny_dataset
from tests.support.jobs import tiny_config, tiny_job
from trainer.config.checks import check_batches, check_protocol
from trainer.config.evaluate import EvaluateConfig
from trainer.config.identity import identity
from trainer.config.job import Job
from trainer.config.train import TrainConfig
from trainer.data.dataset.manifest import read_manifest
from trainer.errors import UserError
from trainer.loop.build import build_model
from trainer.loop.compiled_kernels import kernels_of_ranks, set_kernels_of_evaluation

BOTH, ONE = (
    CompiledKernels(
        SoftmaxKernels(Path("a"), low),
        AttentionKernel(Path("c")),
        LayerKernels(Path("d"), FeedForwardKernel(Path("e")), ProjectionKernels(Path("f"))),
    )
    for low in (Path("b"), None)
)


def agreed(world: World, of_ranks: list[CompiledKernels]) -> CompiledKernels:
    return kernels_of_ranks(world, "train.compiled_kernels", lambda: of_ranks[world.rank])


def complaint(world: World, broken: int) -> str:
    """Return the message of this rank if one of them cannot compile."""

    def build() -> CompiledKernels:
        if world.rank == broken:
            raise KernelBuildError("there is no C++ compiler 'c++'")
        return BOTH

    with pytest.raises(UserError) as error:
        kernels_of_ranks(world, "train.compiled_kernels", build)
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


NUM_ITEMS = 60
FULL = {"model": {"objective": {"kind": "full_softmax"}}}


def evaluated(world: World, job: Job) -> list[dict[str, float]]:
    """Return the metrics of new weights on the validation split, with kernels and without."""
    results = []
    for compiled in (True, False):
        built = build_model(job, read_manifest(job.dataset_dir), world)
        set_kernels_of_evaluation(built, EvaluateConfig(compiled_kernels=compiled), world)
        assert (built.model.encoding_kernels is not None) == compiled
        assert built.model.kernels is None
        evaluator = built.task.evaluator("validation", world, built.dynamic)
        results.append(evaluator.mean_metrics(built.model, lambda *progress: None))
    return results


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_evaluation_with_kernels_has_the_metrics_of_one_without(rank_pool, tmp_path, num_ranks):
    kernels_or_skip()
    tiny_dataset(tmp_path / "dataset")
    job = tiny_job(tmp_path / "run", tmp_path / "dataset")
    compiled, plain = rank_pool.run(num_ranks, evaluated, job)[0]
    assert compiled == pytest.approx(plain, rel=1e-6)


def vectors_of(model: NextItemModel, lengths: list[int], first: int = 0) -> Tensor:
    """Return the vectors of histories of these lengths, of which the events are those from the `first` on of a long one."""
    items = np.random.default_rng(3).integers(1, NUM_ITEMS + 1, 200)[first : first + sum(lengths)]
    offsets, nothing = np.concatenate(([0], np.cumsum(lengths))), np.zeros(0, np.int64)
    catalogue = Catalogue(NUM_ITEMS + 1, NUM_ITEMS + 1)
    batch = build_batch(np.arange(len(lengths)), offsets, items, nothing, nothing, catalogue, False)
    return model.user_vectors(model.look_up(batch.items), batch)


@torch.no_grad()
@pytest.mark.parametrize(
    "encoder", [{"kind": "sasrec"}, {"kind": "hstu", "attention": {"bias": "position"}}, {"kind": "ligr"}]
)
def test_a_history_has_one_vector_in_any_batch_with_kernels_or_without(encoder):
    """Within rounding: products of torch depend on the number of rows."""
    kernels = kernels_or_skip()
    config = NextItemConfig.model_validate({"max_history": 50, "encoder": {**encoder, "num_blocks": 3}})
    model = NextItemModel(config, [TableSpec("item", NUM_ITEMS + 1, 16)], torch.device("cpu")).eval()
    model.initialize(torch.Generator().manual_seed(1))
    for table in model.tables.parameters():
        table.normal_(generator=torch.Generator().manual_seed(2))
    lengths = [3, 40, 1, 0, 17, 29]
    model.encoding_kernels = kernels
    together = vectors_of(model, lengths)
    for place, length in enumerate(lengths):
        alone = vectors_of(model, [length], first=sum(lengths[:place]))
        torch.testing.assert_close(alone, together[place : place + 1], rtol=1e-5, atol=1e-6)
    model.encoding_kernels = None
    torch.testing.assert_close(vectors_of(model, lengths), together, rtol=1e-5, atol=1e-6)


def test_rankers_and_devices_without_kernels_are_refused():
    on = {"compiled_kernels": True}
    with pytest.raises(ValueError, match=r"train.compiled_kernels = true: rankers have no such kernels"):
        check_batches(TrainConfig.model_validate(on), RankingConfig.model_validate({}))
    with pytest.raises(ValueError, match=r"evaluate.compiled_kernels = true: rankers have no such kernels"):
        check_protocol(EvaluateConfig.model_validate(on), RankingConfig.model_validate({}))
    with pytest.raises(UserError, match=r"evaluate.compiled_kernels = true is for CPUs"):
        tiny_config(Path("run"), Path("dataset"), evaluate=on, cluster={"gpus_per_worker": 1}, **FULL)
    with pytest.raises(UserError, match=r"train.compiled_kernels = true is for CPUs"):
        tiny_config(Path("run"), Path("dataset"), train=on, cluster={"gpus_per_worker": 1}, **FULL)
    tiny_config(Path("run"), Path("dataset"), train=on, **FULL)
