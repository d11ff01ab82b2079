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
# Optimizers that change neither a row nor its state if its gradient is zero, without weight decay.
IDLE_AT_ZERO_OPTIMIZERS = frozenset({"sgd", "adagrad", "rowwise_adagrad"})


class VocabularyIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """One row per value of the training part, found by prepare. Exact."""

    kind: Literal["vocabulary"] = Field("vocabulary", description="how values are mapped to rows")
    min_count: int = Field(
        1, ge=1, description="minimum number of occurrences. Rarer values get the row of unknown ids"
    )


class HashIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """A row by the hash of the value: no vocabulary and any number of values, with collisions at a reported rate."""

    kind: Literal["hash"] = Field(description="how values are mapped to rows")
    num_rows: int = Field(ge=2, le=2**31 - 1, description="rows of the table, including row 0 for missing values")


class DynamicIdsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Ids get a row once they have been seen often enough, and lose it to others when the table is full."""

    kind: Literal["dynamic"] = Field("dynamic", description="how values are mapped to rows")
    num_rows: int = Field(ge=2, description="rows of the table, including row 0 for unknown ids")
    admit_after: int = Field(2, ge=1, description="number of times that an id must be seen before it gets a row")
    evict: Literal["age", "use"] = Field(
        "age",
        description="which id loses its row when the table is full. age: the id unused for longest; use: the id used least, "
        "where a use counts half after half_life_steps",
    )
    max_age_steps: int = Field(
        1000, ge=1, description="evict = age: steps after its last use for which an id keeps its row"
    )
    half_life_steps: int = Field(
        1000, ge=1, description="evict = use: steps after which the count of an id's uses is halved"
    )
    max_candidates: int = Field(
        1_000_000,
        ge=1,
        description="maximum number of ids without a row that are counted. Beyond it, those unseen for longest are forgotten",
    )


IdsConfig = Annotated[VocabularyIdsConfig | HashIdsConfig | DynamicIdsConfig, Field(discriminator="kind")]


class TableConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """An embedding table."""

    dim: int = Field(64, ge=4, multiple_of=4, description="width of a row (a multiple of 4)")
    sharding: Literal["auto"] | Sharding | list[Sharding] = Field(
        "auto",
        description="how the table is sharded. auto: the plan decides; a list: the plan chooses one of its entries; "
        "data_parallel: a copy on each worker, for small tables",
    )
    kernel: Literal["auto"] | Kernel = Field(
        "auto",
        description="where rows are stored and updated. auto: fused (updated in the backward pass, in device memory); dense "
        "for data_parallel tables; on GPUs fused_uvm_caching (host memory with a cache on the GPU) for tables that do not fit "
        "otherwise",
    )
    ranks: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="ranks that may hold a table_wise or column_wise table; default: any"
    )
    min_partition: int | None = Field(
        None,
        ge=4,
        multiple_of=4,
        description="minimum number of columns of a shard in a split by columns; default: 32 on CPUs, 64 on GPUs, fewer for "
        "narrow tables",
    )
    pooling_factor: float | None = Field(
        None,
        gt=0.0,
        description="ids that an example looks up, used by the plan only; default: measured on the dataset",
    )
    cache_load_factor: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="fused_uvm_caching: share of the table in the GPU's cache; default: 0.2",
    )
    optimizer: SparseOptimizer = Field(
        "rowwise_adagrad",
        description="optimizer of the table, fused into its backward pass. adam, lamb and the partial_rowwise optimizers need "
        "a GPU; on CPUs adam needs sharding = data_parallel",
    )
    learning_rate: float = Field(0.05, gt=0.0, description="learning rate of the table")
    eps: float = Field(1e-8, gt=0.0, description="number added to the root of the optimizer's second moment")
    weight_decay: float = Field(
        0.0,
        ge=0.0,
        description="L2 penalty of rowwise_adagrad. At each update of a row, this factor times the row is added to its gradient",
    )
    ids: IdsConfig = Field(default_factory=VocabularyIdsConfig, description="how values are mapped to rows")
    init_std: float = Field(0.02, gt=0.0, description="standard deviation of the initial weights")
    lookup: Literal["rows", "bags"] = Field(
        "rows",
        description="tables of features: rows sends each row that a batch needs once to each rank that needs it; bags sums "
        "rows on the rank that holds them and sends one vector per item, event, user or impression, for features with many "
        "values",
    )
    pooling: Literal["mean", "sum"] = Field(
        "mean", description="how rows of a feature with several values are combined"
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
    """Precision of numbers that workers exchange. Less than fp32 changes results slightly (docs/sharding.md)."""

    forward: Precision = Field("fp32", description="precision of looked-up rows")
    backward: Precision = Field("fp32", description="precision of the gradients of looked-up rows")


class DevicesConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Devices for which tables are planned."""

    devices_per_host: int | None = Field(
        None, ge=1, description="devices (one worker each) on each host; default: 8 GPUs, or all CPU workers"
    )
    device_memory: Bytes | None = Field(
        None,
        description='memory of a device, such as "80GiB". No plan exceeds it; default: as on this machine (CPUs), as an '
        "h100-80gb or the preset (GPUs)",
    )
    host_memory: Bytes | None = Field(
        None,
        description="memory of a host, for tables that are not on its GPUs; default: as on this machine (CPUs), as an "
        "h100-80gb or the preset (GPUs)",
    )
    reserved_fraction: float = Field(
        0.15,
        ge=0.0,
        lt=1.0,
        description="share of device_memory reserved for dense weights, activations and batches",
    )
    device_bandwidth: Bytes | None = Field(
        None,
        description='bandwidth of device memory, per second, such as "2TiB"; default: as on this machine (CPUs), as an '
        "h100-80gb or the preset (GPUs)",
    )
    host_bandwidth: Bytes | None = Field(
        None,
        description="bandwidth between a device and the memory of its host, per second; default: as on this machine (CPUs), as "
        "an h100-80gb or the preset (GPUs)",
    )
    intra_host_bandwidth: Bytes | None = Field(
        None,
        description="bandwidth between devices of a host, per second and device; default: as on this machine (CPUs), as an "
        "h100-80gb or the preset (GPUs)",
    )
    inter_host_bandwidth: Bytes | None = Field(
        None,
        description="bandwidth between hosts, per second and device; default: as on this machine (CPUs), as an h100-80gb or "
        "the preset (GPUs)",
    )
    calibration: str | None = Field(
        None,
        description="calibration.json of a measured run (shoal plan --calibrate), used for predictions; default: built-in "
        "constants",
    )
    replica_groups: int = Field(
        1,
        ge=1,
        description="number of groups of workers that each hold all tables (2D parallelism, on GPUs). It must divide the "
        "number of workers",
    )


class PlanConfig(DevicesConfig):
    """Devices of the workers, for which tables are planned."""

    measure: bool = Field(
        True,
        description="time the look-ups of each table before the first step, and store them with the prediction in "
        "placement.json (seconds, once per plan)",
    )
