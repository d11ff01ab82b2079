"""A feature with several values per owner, looked up as bags and as rows: time of a step, and bytes that are sent.

Both do all of it, on every worker at once: from a packed column of values to a request, through the sharded table to a vector for
each owner, and back with an update (row-wise Adagrad). Rows ask for each distinct value once and average on the asking worker;
bags ask for every value, and get averages. Popular values are likelier, the n-th of them with odds 1 / n, so rows have much to
deduplicate in a small table and less in a large one. One thread per worker.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Comparison, take_turns
from benchmarks.traffic import counted_traffic
from models.features.catalogue import Catalogue, IdColumn
from models.features.inputs import ModelInputs
from models.features.values import InputFeature, feature_embedding
from models.tables import EmbeddingTables, TableSpec
from sharding.config import Sharding, TableConfig
from sharding.plan import Plan, TablePlan
from sharding.tables.apply_plan import shard_tables
from sharding.world import World
from trainer.config.job import Channel

OWNERS, DIM = 1_000, 64
VALUES = (5, 30)  # of an owner, on average
NUM_ROWS = (1_000, 100_000)
SHARDINGS: tuple[Sharding, ...] = ("row_wise", "table_wise")
NUM_BATCHES = 3
SCATTER = 611_953  # a prime: spreads popular values over the whole table
Work = Callable[[IdColumn], None]


@dataclass(frozen=True)
class Case:
    """values: of an owner, on average."""

    num_rows: int
    values: int
    sharding: Sharding


def compare(turns: int, world: World, channel: Channel) -> list[Comparison]:
    """Measure on every rank; the first one's figures are those of all."""
    shardings = SHARDINGS if world.world_size > 1 else SHARDINGS[:1]
    cases = [Case(rows, values, sharding) for sharding in shardings for rows in NUM_ROWS for values in VALUES]
    return [comparison for case in cases for comparison in _of_case(case, turns, world)]


def _of_case(case: Case, turns: int, world: World) -> Iterator[Comparison]:
    num_ranks = world.world_size
    columns = [_column(case, 10 * number + world.rank) for number in range(NUM_BATCHES)]
    bags, rows = (_feature_of(case, bagged, world) for bagged in (True, False))
    lies = f"{case.sharding}, " if num_ranks > 1 else ""
    name = f"{case.values} values of {case.num_rows:,}, {lies}{num_ranks} worker{'s' if num_ranks > 1 else ''}"
    amount = float(NUM_BATCHES * OWNERS * num_ranks)
    yield take_turns(
        f"bags, {name}",
        "owners/s",
        amount,
        _together(bags, columns, world),
        _together(rows, columns, world),
        "rows, each distinct one once",
        turns,
    )
    if num_ranks > 1:
        sent = [_bytes_sent(work, columns, world) for work in (bags, rows)]
        yield Comparison(f"bags, sent in a step, {name}", "bytes", (sent[0],), (sent[1],), "rows")


def _column(case: Case, seed: int) -> IdColumn:
    """Return the values of all owners, from zero to twice the average; every worker has the same distribution."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(random.integers(0, 2 * case.values + 1, OWNERS))))
    drawn = float(case.num_rows) ** random.random(offsets[-1]) - 1
    return IdColumn(drawn.astype(np.int64) * SCATTER % case.num_rows, offsets)


def _feature_of(case: Case, bagged: bool, world: World) -> Work:
    """Return the work that looks up the column of one user feature, and updates the table."""
    feature = InputFeature("likes", "likes", DIM, bagged=bagged)
    known = Catalogue(1, 1, inputs=ModelInputs(users=(feature,)))
    table = TableSpec("likes", case.num_rows, DIM, bags=known.bags_of_table("likes"))
    config = TableConfig(dim=DIM, sharding=case.sharding)
    model = nn.Module()
    model.tables = EmbeddingTables([table], torch.device("meta"))
    places = (0,) if case.sharding == "table_wise" else ()
    lies = TablePlan(case.sharding, "fused", case.num_rows, DIM, places)
    shard_tables(model, {"likes": config}, Plan(world.world_size, world.world_size, "cpu", {"likes": lies}), world, 1)
    no_items = known.request(np.zeros(0, np.int64))

    def work(column: IdColumn) -> None:
        asked = known.with_context(no_items, {}, {"likes": column})
        found = model.get_submodule("tables")(
            {name: rows for name, rows in asked.rows.items() if name == "likes"}, asked.bags
        )
        said = feature_embedding(feature, found, asked.users["likes"], OWNERS)
        said.backward(said.detach())

    return work


def _together(work: Work, columns: list[IdColumn], world: World) -> Callable[[], None]:
    def run() -> None:
        world.barrier()
        for column in columns:
            work(column)
        world.barrier()

    return run


def _bytes_sent(work: Work, columns: list[IdColumn], world: World) -> float:
    """Return the bytes that all ranks send in a step, on average."""
    with counted_traffic(sums=True) as traffic:
        for column in columns:
            work(column)
    return sum(world.gather_ints(traffic.sent_bytes)) / len(columns)
