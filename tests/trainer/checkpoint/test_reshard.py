"""Checkpoints rewritten for another plan: exact, each rank's shards in its own file, in little memory, or refused."""

import os
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed import comm

from sharding.plan import Plan, plan_of
from sharding.tables.apply_plan import shard_tables
from sharding.tables.optimizers import Optimizers
from sharding.world import World
from tests.sharding.tables.parity import RATE, SEED, Combination, Model, request_of
from tests.trainer.loop.pieces import Pieces, assembled, check_equal, pieces_of
from trainer.checkpoint import folder as checkpoint_folder
from trainer.checkpoint import tensors as checkpoint_tensors
from trainer.checkpoint.folder import CheckpointManifest, StoredCheckpoint
from trainer.checkpoint.keys import tensors_of
from trainer.checkpoint.reshard import reshard
from trainer.errors import CheckpointError

BLOCK_BYTES = 256  # four rows of the wide table
TRAINED, MORE = range(3), range(3, 5)
HOSTS = {1: 1, 2: 2, 4: 2}  # ranks: ranks on each host


@dataclass(frozen=True)
class Case:
    """The shardings of two tables, (wide, thin), on two ranks, then on four, then on one."""

    pooled: bool
    optimizer: str
    shardings: tuple[tuple[str, str], ...]

    def at(self, world_size: int) -> Combination:
        wide, thin = self.shardings[[2, 4, 1].index(world_size)]
        return Combination(self.pooled, wide, thin, self.optimizer, mean=False)  # type: ignore[arg-type]

    def plan(self, world_size: int) -> Plan:
        return self.at(world_size).plan(world_size, HOSTS[world_size])


CASES = {
    "adagrad": Case(
        False, "adagrad", (("row_wise", "table_wise"), ("column_wise", "row_wise"), ("table_wise", "row_wise"))
    ),
    "rowwise": Case(
        False, "rowwise_adagrad", (("row_wise", "table_wise"), ("table_wise", "row_wise"), ("row_wise", "table_wise"))
    ),
    "sgd": Case(False, "sgd", (("table_wise", "column_wise"), ("row_wise", "row_wise"), ("column_wise", "row_wise"))),
    "copies to shards and back, rowwise": Case(
        True,
        "rowwise_adagrad",
        (("data_parallel", "row_wise"), ("row_wise", "data_parallel"), ("data_parallel", "table_wise")),
    ),
    "shards to copies, adagrad": Case(
        True,
        "adagrad",
        (("row_wise", "data_parallel"), ("data_parallel", "column_wise"), ("row_wise", "data_parallel")),
    ),
    "on hosts, rowwise": Case(
        True,
        "rowwise_adagrad",
        (("row_wise", "table_wise"), ("table_row_wise", "data_parallel"), ("table_wise", "data_parallel")),
    ),
    "on hosts, adagrad": Case(
        True,
        "adagrad",
        (("row_wise", "column_wise"), ("grid_shard", "table_column_wise"), ("column_wise", "table_wise")),
    ),
}


class Run:
    """A model of a case, with its optimizers, on one rank."""

    def __init__(self, world: World, case: Case) -> None:
        self.world, self.case = world, case
        combination, plan = case.at(world.world_size), case.plan(world.world_size)
        copied = combination.wide == combination.thin == "data_parallel"
        self.model = Model(combination, torch.device("cpu" if copied else "meta"))
        self.sharded_model = shard_tables(self.model, combination.tables, plan, world, SEED)
        self.optimizers = Optimizers(
            self.sharded_model, lambda p: torch.optim.AdamW(p, lr=RATE / 10), combination.tables, plan
        )

    def train(self, steps: range) -> None:
        for step in steps:
            self.optimizers.set_rate_factor(1.0 - 0.1 * step)
            self.model(*request_of(step, self.world.rank, self.world.world_size)).backward()
            for parameter in (*self.optimizers.dense_parameters, *self.optimizers.copied_parameters):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.world.sum(parameter.grad)
            self.optimizers.step_dense()

    def tensors(self) -> dict[str, Any]:
        return tensors_of(self.sharded_model, ("wide", "thin"), self.optimizers)

    def state(self) -> dict[str, Pieces]:
        return {name: pieces_of(value) for name, value in self.tensors().items()}

    def save(self, folder: Path) -> Path:
        return checkpoint_tensors.save(folder, self.tensors(), self.world, self._describe, len(TRAINED))

    def load(self, path: Path) -> None:
        checkpoint_tensors.load(
            StoredCheckpoint(path, checkpoint_folder.verify(path)),
            self.sharded_model,
            ("wide", "thin"),
            self.optimizers,
        )

    def _describe(self, files: dict[str, dict[str, Any]]) -> CheckpointManifest:
        plan = self.case.plan(self.world.world_size).values()
        config = {"tables": {name: {"optimizer": self.case.optimizer} for name in ("wide", "thin")}}
        return CheckpointManifest(len(TRAINED), 24, 100, {}, config, plan, "digest", {}, {}, files)


def on_hosts(work: Any) -> Any:
    """Return the result of `work` while TorchRec assumes HOSTS."""
    world_size = torch.distributed.get_world_size()
    torch.set_num_threads(1)
    os.environ["LOCAL_WORLD_SIZE"] = str(HOSTS[world_size])
    comm._INTRA_PG = comm._CROSS_PG = None  # of the process group of an earlier call
    try:
        return work()
    finally:
        comm._INTRA_PG = comm._CROSS_PG = None
        del os.environ["LOCAL_WORLD_SIZE"]


def train_and_save(world: World, root: Path) -> dict[str, tuple[Path, dict[str, Pieces], dict[str, Pieces]]]:
    """Return, by case, the checkpoint, its state, and the state after more steps."""

    def one(name: str) -> tuple[Path, dict[str, Pieces], dict[str, Pieces]]:
        run = Run(world, CASES[name])
        run.train(TRAINED)
        saved, path = run.state(), run.save(root / name / "2")
        run.train(MORE)
        return path, saved, run.state()

    found: dict[str, Any] = on_hosts(lambda: {name: one(name) for name in CASES})
    return found


def load_and_train(world: World, paths: dict[str, list[Path]]) -> dict[str, list[tuple[Any, Any]]]:
    """Return, by case and checkpoint, the state as loaded and the state after more steps."""

    def one(name: str, path: Path) -> tuple[Any, Any]:
        run = Run(world, CASES[name])
        run.train(range(1))  # so that what is loaded replaces something
        run.load(path)
        loaded = run.state()
        run.train(MORE)
        return loaded, run.state()

    found: dict[str, Any] = on_hosts(
        lambda: {name: [one(name, path) for path in of_case] for name, of_case in paths.items()}
    )
    return found


def written(source: Path, folder: Path, case: Case, world_size: int, block_bytes: int = BLOCK_BYTES) -> Path:
    """Reshard the checkpoint for the case's plan of so many ranks."""
    found = StoredCheckpoint(source, checkpoint_folder.verify(source))
    tables = case.at(world_size).tables
    return reshard(found, folder, case.plan(world_size), tables, dict(found.manifest.config), block_bytes)


@dataclass(frozen=True)
class Chain:
    """paths: the checkpoint of 2 ranks, then what it was resharded to, one after another: for 4 ranks, 1, and 2 again.

    saved, went_on: the states that 2 ranks saved and then trained to. loaded: by world size and path, (as loaded, then trained to).
    """

    paths: list[Path]
    saved: dict[str, torch.Tensor]
    went_on: dict[str, torch.Tensor]
    loaded: dict[tuple[int, Path], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def chains(rank_pool, tmp_path_factory) -> dict[str, Chain]:
    root = tmp_path_factory.mktemp("reshard")
    trained = rank_pool.run(2, train_and_save, root, deadline=120.0)
    paths = {name: [trained[0][name][0]] for name in CASES}
    for name, case in CASES.items():
        for world_size in (4, 1, 2):
            paths[name].append(written(paths[name][-1], root / name / f"to {world_size}", case, world_size))
    loaded: dict[str, dict[Any, Any]] = {name: {} for name in CASES}
    for world_size, wanted in ((4, (0, 1)), (1, (0, 2)), (2, (3,))):
        asked = {name: [paths[name][n] for n in wanted] for name in CASES}
        results = rank_pool.run(world_size, load_and_train, asked, deadline=120.0)
        for name in CASES:
            for number, path in enumerate(asked[name]):
                loaded[name][world_size, path] = tuple(
                    assembled([of_rank[name][number][which] for of_rank in results]) for which in (0, 1)
                )
    return {
        name: Chain(
            paths[name],
            assembled([of_rank[name][1] for of_rank in trained]),
            assembled([of_rank[name][2] for of_rank in trained]),
            loaded[name],
        )
        for name in CASES
    }


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_exact_from_2_to_4_to_1_and_back(chains, name):
    """Loaded by 4 ranks and 1 out of the checkpoint of 2, and out of those resharded for them."""
    chain = chains[name]
    slots = {key for key in chain.saved if key.endswith(".accumulator")}
    assert slots == (set() if "sgd" in name else {"table.wide.accumulator", "table.thin.accumulator"})
    assert len(chain.loaded) == 5
    for as_loaded, _ in chain.loaded.values():
        check_equal(as_loaded, chain.saved)


@pytest.mark.parametrize("name", CASES)
def test_training_resumes_as_without_interruption(chains, name):
    chain = chains[name]
    for (world_size, _), (as_loaded, went_on) in chain.loaded.items():
        assert not torch.equal(went_on["table.wide.weight"], as_loaded["table.wide.weight"])
        if world_size == 2:
            check_equal(went_on, chain.went_on)
        for key, value in went_on.items():
            torch.testing.assert_close(
                value, chain.went_on[key], rtol=1e-4, atol=3e-6, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize("name", CASES)
def test_the_shards_of_a_rank_are_in_its_own_file_in_small_blocks(chains, name):
    for path, world_size in zip(chains[name].paths[1:], (4, 1, 2), strict=True):
        plan = CASES[name].plan(world_size)
        assert plan_of(checkpoint_folder.verify(path).plan) == plan
        metadata = pickle.loads((path / ".metadata").read_bytes())
        held: dict[tuple[int, str], int] = {}
        for index, info in metadata.storage_data.items():
            tensor = metadata.state_dict_metadata[index.fqn]
            (chunk,) = (c for c in tensor.chunks if c.offsets == index.offset)
            assert chunk.sizes.numel() * 4 <= BLOCK_BYTES
            rank = int(re.fullmatch(r"__(\d)_0\.distcp", info.relative_path).group(1))  # type: ignore[union-attr]
            if index.fqn.endswith(("wide.weight", "thin.weight")):
                held[rank, index.fqn] = held.get((rank, index.fqn), 0) + chunk.sizes.numel()
        expected: dict[tuple[int, str], int] = {}
        for table in plan.tables:
            copied = plan.tables[table].sharding == "data_parallel"
            for shard in plan.shards(table)[: 1 if copied else None]:
                key = shard.rank, f"table.{table}.weight"
                if shard.num_rows:
                    expected[key] = expected.get(key, 0) + shard.num_rows * shard.num_columns
        assert held == expected


def test_a_flipped_byte_is_detected_in_any_file(chains, tmp_path):
    path = written(chains["adagrad"].paths[0], tmp_path, CASES["adagrad"], 4)
    files = sorted(file for file in path.iterdir() if file.name != "manifest.json")
    assert len(files) == 5
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{re.escape(file.name)} is corrupt"):
            checkpoint_folder.verify(path)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    checkpoint_folder.verify(path)


def changed(case: Case, **table: Any) -> Plan:
    plan = case.plan(4)
    return replace(plan, tables={**plan.tables, "wide": replace(plan.tables["wide"], **table)})


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("adagrad", {"num_rows": 40}, r"table\.wide\.weight is 41 x 16, and tables\.wide has 40 rows of 16"),
        (
            "adagrad",
            {"dim": 32},
            r"table\.wide\.weight is 41 x 16, and tables\.wide has 41 rows of 32; use .* tables\.wide\.dim",
        ),
        (
            "rowwise",
            {"sharding": "column_wise", "places": (0, 1)},
            r"wide\.sharding = column_wise would split; choose row_wise",
        ),
    ],
)
def test_plans_that_do_not_fit_are_refused_by_name_before_anything_is_written(chains, tmp_path, name, table, said):
    source = chains[name].paths[0]
    found = StoredCheckpoint(source, checkpoint_folder.verify(source))
    with pytest.raises(CheckpointError, match=said):
        reshard(found, tmp_path / "out", changed(CASES[name], **table), CASES[name].at(4).tables, {})
    assert not (tmp_path / "out").exists()


def test_another_model_optimizer_or_a_used_folder_is_refused_by_name(chains, tmp_path):
    case, source = CASES["adagrad"], chains["adagrad"].paths[0]
    found = StoredCheckpoint(source, checkpoint_folder.verify(source))
    plan, tables = case.plan(4), case.at(4).tables
    fewer = replace(plan, tables={"wide": plan.tables["wide"]})
    more = replace(plan, tables={**plan.tables, "brand": plan.tables["wide"]})
    other = {name: table.model_copy(update={"optimizer": "rowwise_adagrad"}) for name, table in tables.items()}
    for said, arguments in {
        r"holds tables\.thin, and the plan has no such table": (fewer, tables),
        r"has no tables\.brand": (more, tables),
        r"holds the state of adagrad for tables\.wide, the config says rowwise_adagrad; set": (plan, other),
    }.items():
        with pytest.raises(CheckpointError, match=said):
            reshard(found, tmp_path / "out", *arguments, {})
        assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=r"step_000000003: exists already and would be overwritten"):
        reshard(found, source.parent, plan, tables, {})
    checkpoint_folder.verify(source)


def load_other(world: World, path: Path) -> tuple[str, bool]:
    run = Run(world, replace(CASES["adagrad"], optimizer="sgd"))
    before = run.state()
    try:
        run.load(path)
    except CheckpointError as error:
        check_equal(assembled([run.state()]), assembled([before]))
        return str(error), True
    return "", False


def test_training_with_another_optimizer_is_refused_even_if_it_needs_no_state(chains, rank_pool):
    ((said, refused),) = rank_pool.run(1, load_other, chains["adagrad"].paths[2])
    assert refused
    assert (
        "holds the state of adagrad for tables.wide, the config says sgd; set tables.wide.optimizer = adagrad" in said
    )
