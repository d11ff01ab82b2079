"""Which ways of holding a table work, and why the others do not: known before any worker starts. Imports no torch."""

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
    """Why a table of a run cannot lie in any way that its config allows; none if it can in some."""
    reasons, bags = [], config.lookup == "bags"
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
    """Why numbers cannot travel like this, and what to choose instead; none if they can."""
    for way in ("forward", "backward"):
        precision = getattr(communication, way)
        if precision in ("fp8", "int8"):
            # TorchRec's codecs want sizes that rows of a batch do not have; for some shardings fp16 is sent without a word.
            return f"communication.{way} = {precision}: does not work for look-ups of any size; choose fp16"
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
    """Why a table cannot be held like this, and what to choose instead; none if it can. device: "cpu" or "cuda"."""
    shardings = POOLED_SHARDINGS if pooled else SEQUENCE_SHARDINGS
    if sharding not in shardings:
        return (
            f"sharding = {sharding}: not for tables that are looked up per event; choose one of {', '.join(shardings)}"
        )
    if kernel == "key_value":
        # TorchRec gives no access to rows on SSDs by which weights could be initialised, reset, or moved to other ranks.
        return "kernel = key_value: its rows cannot be initialised; choose fused_uvm_caching"
    if kernel in GPU_KERNELS and device != "cuda":
        return f"kernel = {kernel}: needs a GPU; choose fused"
    if (sharding == "data_parallel") != (kernel == "dense"):
        # TorchRec's dense kernel fails for shards that are looked up per event, and state of its optimizer could not be saved.
        return (
            f"sharding = {sharding} with kernel = {kernel}: copies on every worker have kernel = dense, and nothing else has; "
            'leave kernel = "auto"'
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
            "divide; choose optimizer = adagrad or sharding = row_wise"
        )
    if sharding == "grid_shard" and mean_pooling:
        # TorchRec divides by the number of ids where rows are split, and forgets it for grids.
        return "sharding = grid_shard: gives wrong means; choose table_row_wise or row_wise, or sums"
    if weight_decay and (optimizer != "rowwise_adagrad" or kernel == "dense" or pooled):
        # fbgemm ignores it for SGD and Adagrad on CPUs, and for bags does something that is no L2 penalty.
        return (
            f"weight_decay with optimizer = {optimizer} and sharding = {sharding}: only rowwise_adagrad of sharded tables that "
            "are looked up per event has it, for the rows of a step; choose these, or weight_decay = 0"
        )
    return None
