"""The use of a table in a step: the planner's view of a model. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from sharding.config import Kernel, Sharding, SparseOptimizer, TableConfig


@dataclass(frozen=True)
class TableLoad:
    """One table and its use in a step by one rank.

    The fields without a comment are as in TableConfig; None or "auto" leaves the choice to the plan.
    """

    name: str
    num_rows: int
    dim: int
    pooled: bool  # looked up as bags that are summed (EmbeddingBagCollection), else as a sequence (EmbeddingCollection)
    ids_per_rank: float  # ids that a rank looks up in a step, each counted as often as it is sent
    vectors_per_rank: float  # vectors that a rank receives: one per id of a sequence, one per bag of a pooled table
    optimizer: SparseOptimizer = "rowwise_adagrad"
    shardings: tuple[Sharding, ...] | None = None
    kernel: Literal["auto"] | Kernel = "auto"
    ranks: tuple[int, ...] | None = None
    min_partition: int | None = None
    cache_load_factor: float | None = None
    weight_decay: float = 0.0
    mean_pooling: bool = False  # bags are averaged, not summed
    weighted: bool = False  # each id of a bag is sent with its weight


def sequence_load(name: str, config: TableConfig, num_rows: int, ids_per_rank: float) -> TableLoad:
    """Return the load of a table that is looked up per event, with the constraints of its config."""
    return TableLoad(
        name=name,
        num_rows=num_rows,
        dim=config.dim,
        pooled=False,
        ids_per_rank=ids_per_rank,
        vectors_per_rank=ids_per_rank,
        optimizer=config.optimizer,
        shardings=config.allowed_shardings,
        kernel=config.kernel,
        ranks=tuple(config.ranks) if config.ranks is not None else None,
        min_partition=config.min_partition,
        cache_load_factor=config.cache_load_factor,
        weight_decay=config.weight_decay,
    )


def bag_load(name: str, config: TableConfig, num_rows: int, ids_per_rank: float, bags_per_rank: float) -> TableLoad:
    """Return the load of a table that is looked up in bags of summed rows.

    Means are sums with weights per id (models.features.bags).
    """
    load = sequence_load(name, config, num_rows, ids_per_rank)
    return replace(load, pooled=True, vectors_per_rank=bags_per_rank, weighted=config.pooling == "mean")
