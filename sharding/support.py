"""Which ways of holding a table work, and why the others do not: known before any worker starts. Imports no torch."""

from sharding.config import COLUMN_SPLITS, ROWWISE_OPTIMIZERS, Kernel, Sharding, SparseOptimizer

SEQUENCE_SHARDINGS: dict[str, tuple[Sharding, ...]] = {
    "cpu": ("data_parallel", "table_wise", "row_wise", "column_wise"),
    "cuda": ("data_parallel", "table_wise", "row_wise", "column_wise"),
}
POOLED_SHARDINGS: tuple[Sharding, ...] = (
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
GPU_KERNELS = frozenset({"fused_uvm", "fused_uvm_caching", "key_value"})
GPU_OPTIMIZERS = frozenset({"adam", "lamb", "partial_rowwise_adam", "partial_rowwise_lamb"})


def why_unsupported(
    sharding: Sharding, kernel: Kernel, optimizer: SparseOptimizer, pooled: bool, device: str
) -> str | None:
    """Why a table cannot be held like this, and what to choose instead; none if it can. device: "cpu" or "cuda"."""
    shardings = POOLED_SHARDINGS if pooled else SEQUENCE_SHARDINGS[device]
    if sharding not in shardings:
        return (
            f"sharding = {sharding}: not for tables that are looked up per event; choose one of {', '.join(shardings)}"
        )
    if kernel in GPU_KERNELS and device != "cuda":
        return f"kernel = {kernel}: needs a GPU; choose fused"
    if sharding == "data_parallel" and kernel != "dense":
        return f"kernel = {kernel}: a data_parallel table has kernel = dense"
    if sharding in COLUMN_SPLITS and optimizer in ROWWISE_OPTIMIZERS:
        return (
            f"sharding = {sharding} with optimizer = {optimizer}: it keeps one number per row, which a column split would "
            "divide; choose optimizer = adagrad or sharding = row_wise"
        )
    if optimizer in GPU_OPTIMIZERS and device != "cuda" and (optimizer != "adam" or kernel != "dense"):
        return f"optimizer = {optimizer} with kernel = {kernel}: needs a GPU; choose rowwise_adagrad, adagrad or sgd"
    return None
