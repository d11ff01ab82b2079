"""How a table is stored, placed and updated. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Sharding = Literal["row_wise", "table_wise", "column_wise", "replicated"]
SparseOptimizer = Literal["sgd", "adagrad", "rowwise_adagrad"]


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
    sharding: Sharding = Field(
        "row_wise",
        description="how the table lies on the workers: row_wise, table_wise, column_wise, or replicated (a copy on "
        "each worker, updated by the dense optimizer; for small tables)",
    )
    optimizer: SparseOptimizer = Field(
        "rowwise_adagrad",
        description="the optimizer fused into the table's backward pass (a replicated table follows train.optimizer)",
    )
    learning_rate: float = Field(0.05, gt=0.0, description="step size of the table's optimizer")
    eps: float = Field(1e-8, gt=0.0, description="added to the root of Adagrad's accumulator")
    ids: IdsConfig = Field(default_factory=VocabularyIdsConfig, description="how values become rows")
    init_std: float = Field(0.02, gt=0.0, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _refuse_rowwise_state_in_column_shards(self) -> "TableConfig":
        # Every column shard would keep an accumulator of its own columns only, which is another optimizer.
        if self.sharding == "column_wise" and self.optimizer == "rowwise_adagrad":
            raise ValueError(
                "rowwise_adagrad keeps one accumulator per row, which a column_wise table would split; "
                'choose optimizer = "adagrad" or sharding = "row_wise"'
            )
        return self
