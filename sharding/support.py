"""Supported combinations of sharding, kernel and optimizer, and the reasons against others.

The checks run before any worker starts. Imports no torch.
"""

from sharding.config import (
    COLUMN_SPLITS,
    ROWWISE_OPTIMIZERS,
    CommunicationConfig,
    Kernel,
    Sharding,
    SparseOptimizer,
    TableConfig,
)

SEQUENCE_SHARDINGS: tuple[Sharding, ...] = ("data_parallel", "table_wise", "row_wise", "column_wise")
POOLED_SHARDINGS: tuple[Sharding, ...] = (*SEQUENCE_SHARDINGS, "table_row_wise", "table_column_wise", "grid_shard")
GPU_KERNELS = frozenset({"fused_uvm", "fused_uvm_caching", "key_value"})
# Optimizers that exist only within the backward pass, and there on GPUs alone.
FUSED_ONLY = frozenset({"lamb", "partial_rowwise_adam", "partial_rowwise_lamb"})


def placement_reason(config: TableConfig, device: str) -> str | None:
    """Return why no configured way of placing a table of a run works, or None if one does."""
    reasons = []
    bags = config.lookup == "bags"
    shardings = POOLED_SHARDINGS if bags else SEQUENCE_SHARDINGS
    for sharding in config.allowed_shardings or shardings:
        kernel: Kernel = "dense" if sharding == "data_parallel" else "fused"
        if config.kernel != "auto":
            kernel = config.kernel
        reason = unsupported_reason(sharding, kernel, config.optimizer, bags, device, weight_decay=config.weight_decay)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0] if config.allowed_shardings else reasons[shardings.index("row_wise")]


def codec_reason(communication: CommunicationConfig, device: str) -> str | None:
    """Return why a precision of communication is not supported, and which to choose instead, or None if it is."""
    for way in ("forward", "backward"):
        precision = getattr(communication, way)
        if precision in ("fp8", "int8"):
            # TorchRec's codecs need sizes that rows of a batch do not have. For some shardings they silently send fp16.
            return f"communication.{way} = {precision}: is not supported for look-ups of any size; choose fp16"
        if precision == "bf16" and device != "cuda":
            return f"communication.{way} = bf16: TorchRec sends fp16 in its place between CPUs; choose fp16"
    return None


def unsupported_reason(
    sharding: Sharding,
    kernel: Kernel,
    optimizer: SparseOptimizer,
    pooled: bool,
    device: str,
    *,
    mean_pooling: bool = False,
    weight_decay: float = 0.0,
) -> str | None:
    """Return why a combination is not supported, and what to choose instead, or None if it is.

    pooled: the table is looked up as bags. device: "cpu" or "cuda". mean_pooling: TorchRec averages the bags.
    """
    shardings = POOLED_SHARDINGS if pooled else SEQUENCE_SHARDINGS
    if sharding not in shardings:
        return (
            f"sharding = {sharding}: not for tables that are looked up per event; choose one of {', '.join(shardings)}"
        )
    if kernel == "key_value":
        # TorchRec has no access to rows on SSDs to initialise, reset or move weights.
        return "kernel = key_value: its rows cannot be initialised; choose fused_uvm_caching"
    if kernel in GPU_KERNELS and device != "cuda":
        return f"kernel = {kernel}: needs a GPU; choose fused"
    if (sharding == "data_parallel") != (kernel == "dense"):
        # TorchRec's dense kernel fails for shards that are looked up per event, and the state of its optimizer could not be saved.
        return (
            f"sharding = {sharding} with kernel = {kernel}: copies on every worker have kernel = dense, other tables have "
            'another; leave kernel = "auto"'
        )
    if kernel == "dense" and optimizer in FUSED_ONLY:
        return (
            f"sharding = data_parallel with optimizer = {optimizer}: exists only fused; choose adam or a sharded table"
        )
    if optimizer in FUSED_ONLY | {"adam"} and kernel != "dense" and device != "cuda":
        return (
            f"optimizer = {optimizer} with kernel = {kernel}: needs a GPU; choose rowwise_adagrad, adagrad or sgd, or for adam "
            "sharding = data_parallel"
        )
    if sharding in COLUMN_SPLITS and optimizer in ROWWISE_OPTIMIZERS:
        return (
            f"sharding = {sharding} with optimizer = {optimizer}: it has one number per row, which a column split would "
            "split; choose optimizer = adagrad or sharding = row_wise"
        )
    if sharding == "grid_shard" and mean_pooling:
        # TorchRec divides by the number of ids where rows are split, but not for grids.
        return "sharding = grid_shard: gives wrong means; choose table_row_wise or row_wise, or sums"
    if weight_decay and (optimizer != "rowwise_adagrad" or kernel == "dense" or pooled):
        # fbgemm ignores it for SGD and Adagrad on CPUs, and for bags computes something other than an L2 penalty.
        return (
            f"weight_decay with optimizer = {optimizer} and sharding = {sharding}: only rowwise_adagrad of sharded tables that "
            "are looked up per event supports it, for the rows of a step; choose these, or weight_decay = 0"
        )
    return None
