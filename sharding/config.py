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


IdsConfig = Annotated[VocabularyIdsConfig | HashIdsConfig, Field(discriminator="kind")]


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
