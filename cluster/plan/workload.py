"""A workload: tables, their look-ups in a step, and devices, without logs. Imports no torch.

batch_size = 65536            examples of the global batch
[topology]                    the devices
[communication]               as in a run's config
[[table]]                     a table, or `count` identical tables
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.config.explain import explain
from cluster.config.file import apply_override
from sharding.config import CommunicationConfig, DevicesConfig, Kernel, Sharding, SparseOptimizer, TableConfig
from sharding.planning.load import TableLoad
from trainer.errors import UserError

_OF_TABLES = ("dim", "sharding", "kernel", "ranks", "min_partition", "cache_load_factor", "optimizer")


class WorkloadTopologyConfig(DevicesConfig):
    """Devices for which the tables are planned."""

    devices: int = Field(ge=1, le=65536, description="number of devices")
    device: Literal["cpu", "cuda"] = Field("cuda", description="type of the devices")
    preset: str | None = Field(
        None,
        description='GPU preset, such as "h100-80gb". Other settings take precedence; default: h100-80gb for GPUs',
    )


class WorkloadTableConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A table, or several identical ones, and the look-ups of an example in each."""

    rows: int = Field(ge=1, le=10**12, description="number of rows")
    dim: int = Field(64, ge=4, multiple_of=4, description="width of a row (a multiple of 4)")
    count: int = Field(1, ge=1, le=100_000, description="number of such tables: NAME_0, NAME_1, ...")
    pooled: bool = Field(False, description="looked up as bags of summed rows; otherwise as a sequence of rows")
    ids_per_example: float = Field(
        1.0,
        gt=0.0,
        description="mean number of ids that an example looks up; of unique ids, where each is looked up once per batch",
    )
    bags_per_example: float = Field(1.0, gt=0.0, description="pooled table: number of sums per example")
    optimizer: SparseOptimizer = Field("rowwise_adagrad", description="optimizer of the table")
    sharding: Literal["auto"] | Sharding | list[Sharding] = Field("auto", description="as in tables.NAME.sharding")
    kernel: Literal["auto"] | Kernel = Field("auto", description="as in tables.NAME.kernel")
    ranks: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="as in tables.NAME.ranks; default: any"
    )
    min_partition: int | None = Field(
        None,
        ge=4,
        multiple_of=4,
        description="as in tables.NAME.min_partition; default: 32 on CPUs, 64 on GPUs, fewer for narrow tables",
    )
    cache_load_factor: float | None = Field(
        None, gt=0.0, le=1.0, description="as in tables.NAME.cache_load_factor; default: 0.2"
    )

    @model_validator(mode="after")
    def _valid_as_a_table_of_a_run(self) -> "WorkloadTableConfig":
        self.placement()
        return self

    def placement(self) -> TableConfig:
        """Return the constraints on the placement of the table, in the form of a run's config."""
        return TableConfig(**{name: getattr(self, name) for name in _OF_TABLES})


class WorkloadConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A workload: its tables by name, its batch and its devices."""

    batch_size: int | None = Field(
        None, ge=1, description="number of examples in the global batch; default: unset, if examples_per_rank is given"
    )
    examples_per_rank: int | None = Field(
        None, ge=1, description="number of examples per device; default: unset, if batch_size is given"
    )
    topology: WorkloadTopologyConfig
    communication: CommunicationConfig = Field(default_factory=CommunicationConfig)
    table: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], WorkloadTableConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_size_of_the_batch(self) -> "WorkloadConfig":
        if (self.batch_size is None) == (self.examples_per_rank is None):
            raise ValueError("set either batch_size (of all devices together) or examples_per_rank")
        return self

    def loads(self) -> list[TableLoad]:
        """Return the look-ups of one device in each table per step."""
        examples = self.examples_per_rank or (self.batch_size or 0) / self.topology.devices
        return [
            _load(name if table.count == 1 else f"{name}_{number}", table, examples)
            for name, table in self.table.items()
            for number in range(table.count)
        ]


def check_workload(values: dict[str, Any], origin: str, overrides: list[str]) -> WorkloadConfig:
    """Return the workload from the plain values of its file, with `key=value` overrides. Tables are table.NAME.

    Raises UserError with the wrong key.
    """
    given = values["table"]
    if not isinstance(given, list) or not all(isinstance(table, dict) and "name" in table for table in given):
        raise UserError(f"workload {origin}: every table is a [[table]] with a name")
    names = [str(table["name"]) for table in given]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"workload {origin}: two tables are called {name!r}; give each its own name, or set `count`"
            )
    tables = {str(table["name"]): {k: v for k, v in table.items() if k != "name"} for table in given}
    values = {**values, "table": tables}
    for override in overrides:
        apply_override(override, values)
    try:
        return WorkloadConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, origin, WorkloadConfig)) from None


def _load(name: str, table: WorkloadTableConfig, examples: float) -> TableLoad:
    placement = table.placement()
    ids = table.ids_per_example * examples
    return TableLoad(
        name=name,
        num_rows=table.rows,
        dim=table.dim,
        pooled=table.pooled,
        ids_per_rank=ids,
        vectors_per_rank=table.bags_per_example * examples if table.pooled else ids,
        optimizer=table.optimizer,
        shardings=placement.allowed_shardings,
        kernel=table.kernel,
        ranks=tuple(table.ranks) if table.ranks is not None else None,
        min_partition=table.min_partition,
        cache_load_factor=table.cache_load_factor,
    )
