"""How a table is stored, placed and updated. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

Sharding = Literal["row_wise", "table_wise", "column_wise", "replicated"]
SparseOptimizer = Literal["sgd", "adagrad", "rowwise_adagrad"]


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
