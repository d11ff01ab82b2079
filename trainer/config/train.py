"""The section `[train]`: training, early stopping and daily training."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

_DEFAULT_BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}
Precision = Literal["float32", "bfloat16"]


class EarlyStoppingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Stops training when the validation metric no longer improves. The best checkpoint is kept."""

    metric: str = Field(
        "ndcg@10",
        description="validation metric. next_item: hr@K, ndcg@K, recall@K, precision@K, map@K, debiased_ndcg@K or mrr. "
        "ranking: auc, pr_auc, gauc, logloss or ne, with a label as in auc/click if there are several; its default is auc of the "
        "first label",
    )
    patience: int = Field(5, ge=1, description="evaluations without improvement after which training stops")


class DaysConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Daily training: each training impression once, in time order. The presence of the table turns it on."""

    length: int | str = Field(
        "1d",
        description='length of a day: a number and s, m, h, d or w, as in "12h" or "1d", where the time column holds '
        "timestamps; an integer in the unit of the time column, where it holds integers",
    )
    start: int | str | None = Field(
        None,
        description="start of the first trained day, in the form of split.validation_time. Earlier impressions are history "
        "only; default: the day of the first training impression, with days at multiples of length since 1970 (or since 0)",
    )
    evaluate_next: bool = Field(True, description="evaluate the model on each day before it trains on that day")

    @model_validator(mode="after")
    def _check_length(self) -> "DaysConfig":
        if isinstance(self.length, int) and self.length < 1:
            raise ValueError(f"length = {self.length} must be at least 1")
        if isinstance(self.length, str) and not re.fullmatch("[1-9][0-9]*[smhdw]", self.length):
            raise ValueError(f'length = {self.length!r}: write a number and one of s, m, h, d, w, as in "1d" or "12h"')
        return self


class TrainConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The training loop."""

    epochs: int = Field(10, ge=1, description="passes over the training histories")
    days: DaysConfig | None = Field(None, description="daily training in place of epochs; default: train in epochs")
    max_steps: int | None = Field(
        None, ge=1, description="steps after which training stops, even inside an epoch; default: no limit"
    )
    batch_size: int = Field(128, ge=1, description="histories in the global batch, over all workers")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="maximum number of input events in the global batch. If set, it replaces batch_size, and a batch takes as "
        "many histories as fit; default: batch_size decides",
    )
    deal_by: Literal["count", "length", "flops"] = Field(
        "length",
        description="how the histories of a global batch are divided among workers. count: equal numbers, whatever their lengths, "
        "mostly by streams; length: the longest first, to the workers in turn, so that numbers are equal too; flops: those with "
        "most estimated FLOPs first, each to the worker with fewest so far. Ranking gives workers equal numbers of users",
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="maximum number of input events (and impressions) that a worker encodes at once. Larger shares of a batch "
        "run forward and backward in several micro-batches, which bounds the memory of activations and does not change the "
        "step; default: the whole share at once",
    )
    streams: int = Field(
        64,
        ge=1,
        le=1 << 16,
        description="number of streams of row groups that the order of examples takes in turns. Any number of workers gets even "
        "shares. Workers up to this number also read row groups of their own; more workers share them",
    )
    catalogue_workers: int = Field(
        1,
        ge=1,
        description="number of workers that divide the catalogue among them, for full_softmax: each looks up and scores its share "
        "of the items for the targets of all of them. It pays off where the catalogue has more items than a batch has events. If "
        "it does not divide the number of workers, the next smaller divisor is used. 1: every worker looks up all items",
    )
    long_histories: Literal["recent", "windows"] = Field(
        "recent",
        description="how to train histories longer than model.max_history: their most recent events, or all events in "
        "consecutive windows of that length",
    )
    optimizer: Literal["adamw", "lion", "adagrad", "sgd"] = Field(
        "adamw", description="optimizer of the dense weights. Tables have their own"
    )
    learning_rate: float = Field(1e-3, gt=0.0, description="learning rate of the dense optimizer")
    betas: list[Annotated[float, Field(ge=0.0, lt=1.0)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="decay rates of the two moving averages of adamw and lion; default: 0.9 and 0.999 for adamw, 0.9 and 0.99 "
        "for lion",
    )
    eps: float = Field(1e-8, gt=0.0, description="number added to the denominator of adamw")
    weight_decay: float = Field(
        0.0,
        ge=0.0,
        description="decoupled weight decay of adamw and lion, multiplied by the learning rate at each step. It applies to "
        "matrices only, not to biases, norms and other one-dimensional weights",
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"] = Field(
        "constant",
        description="how learning rates fall after warm-up: linear and cosine, to schedule_floor at the last step; "
        "inverse_sqrt, with the inverse square root of the step; warmup_stable_decay, linearly over the last decay_share of "
        "the steps",
    )
    schedule_floor: float = Field(
        0.02, ge=0.0, le=1.0, description="minimum of a schedule, as a share of the full learning rate"
    )
    decay_share: float = Field(
        0.2, gt=0.0, le=1.0, description="share of all steps over which warmup_stable_decay falls"
    )
    schedule_tables: bool = Field(
        True,
        description="apply warm-up and schedule to the learning rates of tables too, not only to that of the dense weights",
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which learning rates rise linearly from zero")
    clip_norm: float | None = Field(
        None,
        gt=0.0,
        description="maximum L2 norm of the gradient of a step, over all dense weights, tables and workers. A longer gradient "
        "is scaled down to it. This costs one more exchange of the gradients of tables; default: no clipping",
    )
    precision: Precision = Field(
        "float32",
        description="precision of encoder and objective in training. bfloat16 applies to matrix products and attention "
        "(autocast). Weights, optimizer states, tables, sums of losses and evaluation stay in float32",
    )
    send_ids_early: bool = Field(
        False,
        description="send the ids of the next batch to the workers that hold their rows while a step computes. Results do not "
        "change. A request to stop or for a checkpoint is followed one step later",
    )
    compiled_kernels: bool = Field(
        False,
        description="compute objectives, causal attention over all earlier events, and norms, activations, dropout and residual "
        "sums on CPUs by kernels in C++, which each machine compiles once, in seconds. It needs a C++ compiler and AVX-512 on "
        "every worker's machine. With bfloat16 it uses AMX if all machines have it. Results differ from those without it by "
        "rounding",
    )
    tf32: bool = Field(
        False,
        description="float32 matrix products of training on GPUs take factors in TF32 (10 bits after the point), and tensor cores "
        "compute them. Sums and evaluation stay in float32",
    )
    torch_compile: bool = Field(
        False,
        description="compile feed-forward sub-layers and towers by torch.compile, which joins their elementwise operations. The "
        "first steps take seconds longer. It needs a C++ compiler on every worker's machine, and Triton on GPUs. Results differ "
        "from those without it by rounding",
    )
    ema_decay: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="decay per step of the exponential moving average of the dense weights (weight EMA), which evaluation uses "
        "in place of the trained weights. In the first steps the average is shorter; default: no average",
    )
    max_nonfinite_steps: int = Field(
        10, ge=0, description="consecutive steps that may be skipped because the loss or a gradient is not finite"
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="epochs between evaluations on the validation split")
    early_stopping: EarlyStoppingConfig | None = Field(
        default_factory=EarlyStoppingConfig, description="when to stop early. Leave the table out for its defaults"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between lines in metrics.jsonl and TensorBoard")
    sample_log: bool = Field(
        False,
        description="record the ids of the histories trained at each step in sample_log/ in the run folder, for audits",
    )

    @model_validator(mode="after")
    def _reject_counts_of_a_budget(self) -> "TrainConfig":
        if self.deal_by == "count" and self.batch_tokens is not None:
            raise ValueError(
                'deal_by = "count" is for batch_size: a batch of batch_tokens has any number of histories, which are divided by '
                '"length" or "flops"'
            )
        return self

    @model_validator(mode="after")
    def _reject_decay_without_averages(self) -> "TrainConfig":
        if self.weight_decay and self.optimizer not in _DEFAULT_BETAS:
            raise ValueError(
                f"weight_decay = {self.weight_decay} is for adamw and lion, not for optimizer = {self.optimizer!r}; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _reject_epochs_of_days(self) -> "TrainConfig":
        """Reject settings that need a number of epochs or a last step, because daily training has neither."""
        if self.days is None:
            return self
        for name in ("epochs", "evaluate_every_epochs"):
            if getattr(self, name) != TrainConfig.model_fields[name].default:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: daily training has no epochs (train.days); leave it out"
                )
        if self.needs_the_end:
            raise ValueError(
                f"schedule = {self.schedule!r} needs a last step, and daily training has none (train.days); "
                'choose "constant" or "inverse_sqrt"'
            )
        if self.early_stopping is not None:
            raise ValueError(
                "early_stopping returns to an earlier epoch, and daily training has no epochs (train.days); leave it out or "
                'set it to "none"'
            )
        return self

    @property
    def betas_used(self) -> tuple[float, float]:
        """Return the decay rates of both averages of the dense optimizer, as configured or its defaults."""
        first, second = self.betas or _DEFAULT_BETAS.get(self.optimizer, (0.0, 0.0))
        return first, second

    def catalogue_group(self, num_workers: int) -> int:
        """Return how many workers divide the catalogue: catalogue_workers, or the next smaller divisor of their number.

        So a group of workers that becomes smaller when nodes are lost trains on.
        """
        most = min(self.catalogue_workers, num_workers)
        return next(size for size in range(most, 0, -1) if num_workers % size == 0)

    @property
    def needs_the_end(self) -> bool:
        """Return whether the learning rate of a step depends on the total number of steps."""
        return self.schedule not in ("constant", "inverse_sqrt")
