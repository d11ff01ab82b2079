"""Settings of the storage, sharding and update of tables. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, Field, WithJsonSchema, model_validator

Sharding = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
]
Kernel = Literal["dense", "fused", "fused_uvm", "fused_uvm_caching", "key_value"]
SparseOptimizer = Literal[
    "sgd",
    "adagrad",
    "rowwise_adagrad",
    "adam",
    "lamb",
    "partial_rowwise_adam",
    "partial_rowwise_lamb",
]
# A number of bytes, or text such as "80GiB".
Bytes = Annotated[ByteSize, WithJsonSchema({"type": "string", "format": "bytes"})]
Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]
COLUMN_SPLITS = frozenset({"column_wise", "table_column_wise", "grid_shard"})
# Splits by rows alone: TorchRec sums parts of a bag and, for means, divides the sum.
ROW_SPLITS = frozenset({"row_wise", "table_row_wise"})
# Shardings for which TorchRec sums parts of a bag over several ranks.
SUMMED_SPLITS = ROW_SPLITS | {"grid_shard"}
# Optimizers with one number per row (for lamb its length): with split columns, each piece would have its own.
ROWWISE_OPTIMIZERS = frozenset({"rowwise_adagrad", "lamb", "partial_rowwise_adam", "partial_rowwise_lamb"})
# Optimizers with updates that depend on the number of updates before: they correct moments that start at zero.
COUNTING_OPTIMIZERS = frozenset({"adam", "lamb", "partial_rowwise_adam", "partial_rowwise_lamb"})


class VocabularyIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A row for every value that the training part has, found by prepare. Exact."""

    kind: Literal["vocabulary"] = Field("vocabulary", description="how values become rows")
    min_count: int = Field(1, ge=1, description="values that occur less often get the row of unknown ones")


class HashIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A row by the hash of the value: no vocabulary, any number of values, and collisions, whose rate is reported."""

    kind: Literal["hash"] = Field(description="how values become rows")
    num_rows: int = Field(ge=2, le=2**31 - 1, description="rows of the table, the row 0 of missing values included")


class DynamicIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Ids that get a row of the table when they are seen often enough, and lose it to others when it is full."""

    kind: Literal["dynamic"] = Field("dynamic", description="how ids become rows")
    num_rows: int = Field(ge=2, description="rows of the table, row 0 for unknown ids among them")
    admit_after: int = Field(2, ge=1, description="how often an id must be seen before it gets a row of its own")
    evict: Literal["age", "use"] = Field(
        "age",
        description="who loses its row when the table is full: age, the id unused for longest; use, the id that was "
        "used least, where a use counts half after half_life_steps",
    )
    max_age_steps: int = Field(
        1000, ge=1, description="with evict = age: an id keeps its row for this many steps after its last use"
    )
    half_life_steps: int = Field(
        1000, ge=1, description="with evict = use: steps after which the count of an id's uses is halved"
    )
    max_candidates: int = Field(
        1_000_000,
        ge=1,
        description="ids without a row that are counted at once; when there are more, those unseen for longest are forgotten",
    )


IdsConfig = Annotated[VocabularyIdsConfig | HashIdsConfig | DynamicIdsConfig, Field(discriminator="kind")]


class TableConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """One embedding table."""

    dim: int = Field(64, ge=4, multiple_of=4, description="width of a row, in numbers (a multiple of 4)")
    sharding: Literal["auto"] | Sharding | list[Sharding] = Field(
        "auto",
        description="how the table may lie on the workers; auto leaves it to the plan, a list lets the plan choose among "
        "its entries; data_parallel: a copy on each worker, for small tables",
    )
    kernel: Literal["auto"] | Kernel = Field(
        "auto",
        description="where rows are held and updated; auto: fused (updated within the backward pass, in device memory), "
        "dense for data_parallel tables, and on GPUs fused_uvm_caching (host memory with a cache on the GPU) for tables "
        "that fit no other way",
    )
    ranks: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="the workers that may hold a table_wise or column_wise table; none: any"
    )
    min_partition: int | None = Field(
        None, ge=4, multiple_of=4, description="columns that a shard of a column split has at least"
    )
    pooling_factor: float | None = Field(
        None, gt=0.0, description="ids that an example looks up, in place of what the data says, for the plan alone"
    )
    cache_load_factor: float | None = Field(
        None, gt=0.0, le=1.0, description="with fused_uvm_caching: the part of the table that the GPU's cache holds"
    )
    optimizer: SparseOptimizer = Field(
        "rowwise_adagrad",
        description="the optimizer of the table, fused into its backward pass; adam, lamb and the partial_rowwise ones need "
        "a GPU, adam on CPUs sharding = data_parallel",
    )
    learning_rate: float = Field(0.05, gt=0.0, description="step size of the table's optimizer")
    eps: float = Field(1e-8, gt=0.0, description="added to the root of the optimizer's second moment")
    weight_decay: float = Field(
        0.0,
        ge=0.0,
        description="L2 penalty of rowwise_adagrad: this times a row is added to its gradient whenever it is updated",
    )
    ids: IdsConfig = Field(default_factory=VocabularyIdsConfig, description="how values become rows")
    init_std: float = Field(0.02, gt=0.0, description="standard deviation of the initial weights")
    lookup: Literal["rows", "bags"] = Field(
        "rows",
        description="of tables of features: rows, each row that a batch needs travels once to whoever needs it; bags, rows are "
        "added up where they lie, and one vector for each item, event, user or impression travels: for features with many values",
    )
    pooling: Literal["mean", "sum"] = Field(
        "mean", description="what becomes of the rows of a feature with several values: their mean, or their sum"
    )

    @property
    def allowed_shardings(self) -> tuple[Sharding, ...] | None:
        """Return the shardings among which the plan can choose; None: all that do not change results."""
        if self.sharding == "auto":
            return None
        return tuple(self.sharding) if isinstance(self.sharding, list) else (self.sharding,)

    @model_validator(mode="after")
    def _refuse_rowwise_state_in_column_shards(self) -> "TableConfig":
        # Every column shard would have a number for its own columns only, which would be a different optimizer.
        split = [sharding for sharding in self.allowed_shardings or () if sharding in COLUMN_SPLITS]
        if split and self.optimizer in ROWWISE_OPTIMIZERS:
            raise ValueError(
                f"{self.optimizer} has one number per row, which a {split[0]} table would split; "
                'choose optimizer = "adagrad" or sharding = "row_wise"'
            )
        return self

    @model_validator(mode="after")
    def _refuse_a_choice_between_two_adams(self) -> "TableConfig":
        # In a copy it moves all rows in every step, fused only the looked-up ones, so the plan would change the training.
        allowed = self.allowed_shardings or ()
        if self.optimizer == "adam" and "data_parallel" in allowed and len(set(allowed)) > 1:
            raise ValueError(
                "adam moves all rows of a data_parallel table in every step, and of others only those that were looked up, so the "
                'plan cannot choose among both; choose sharding = "data_parallel" or leave it out of the list'
            )
        return self


class CommunicationConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """How numbers travel between workers. Less than fp32 changes results a little; docs/sharding.md says by how much."""

    forward: Precision = Field("fp32", description="precision of looked-up rows on their way to the workers")
    backward: Precision = Field("fp32", description="precision of their gradients on the way back")


class DevicesConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """What devices are like, for a plan of tables on them."""

    devices_per_host: int | None = Field(None, ge=1, description="workers on each host")
    device_memory: Bytes | None = Field(
        None, description='memory that a worker\'s device has, such as "80GiB"; no plan puts more on it'
    )
    host_memory: Bytes | None = Field(None, description="memory of a host, for tables that are not on its GPUs")
    reserved_fraction: float = Field(
        0.15,
        ge=0.0,
        lt=1.0,
        description="part of device_memory that is kept for dense weights, activations and batches",
    )
    device_bandwidth: Bytes | None = Field(None, description='of device memory, per second, such as "2TiB"')
    host_bandwidth: Bytes | None = Field(None, description="between a device and its host's memory, per second")
    intra_host_bandwidth: Bytes | None = Field(None, description="between devices of a host, per second and device")
    inter_host_bandwidth: Bytes | None = Field(None, description="between hosts, per second and device")
    calibration: str | None = Field(
        None,
        description="calibration.json of a run whose look-ups were measured (shoal plan --calibrate), for the predictions",
    )
    replica_groups: int = Field(
        1,
        ge=1,
        description="groups of workers that each hold all tables (2D parallelism, on GPUs); it divides their number",
    )


class PlanConfig(DevicesConfig):
    """What the workers' devices are like, for the plan of the tables. Unset: what this machine is like."""

    measure: bool = Field(
        True,
        description="time the look-ups of each table before the first step, and note them beside the prediction in "
        "placement.json (seconds, once per plan)",
    )
