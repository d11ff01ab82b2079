"""Settings of splits, training, checkpoints and evaluation (those of logs: trainer/data/logs/config.py). Imports no torch."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

Precision = Literal["float32", "bfloat16"]


class LeaveOneOutConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Each user's last event is the test target, the one before it the validation target."""

    kind: Literal["leave_one_out"] = Field("leave_one_out", description="which split")
    min_events: int = Field(
        3, ge=3, description="users with fewer events are trained on, and neither validated nor tested"
    )
    validation_share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of users who are validated, chosen by a hash of their ids; of the others the event before the last is "
        "trained on",
    )


class GlobalTimeConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Events before `validation_time` train, those before `test_time` validate, the rest test."""

    kind: Literal["global_time"] = Field(description="which split")
    validation_time: int | str = Field(
        description="first moment of the validation period: an integer in the unit of the time column, or an ISO date or "
        "date and time (UTC) where that column holds timestamps"
    )
    test_time: int | str = Field(description="first moment of the test period, in the same form")

    @model_validator(mode="after")
    def _times_in_order(self) -> "GlobalTimeConfig":
        if type(self.validation_time) is not type(self.test_time):
            raise ValueError("validation_time and test_time must have the same form: two integers or two ISO dates")
        if not self.validation_time < self.test_time:  # type: ignore[operator]
            raise ValueError("validation_time must be earlier than test_time")
        return self


SplitConfig = Annotated[LeaveOneOutConfig | GlobalTimeConfig, Field(discriminator="kind")]


class EarlyStoppingConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Stop when the validation metric no longer improves, and keep the best checkpoint."""

    metric: str = Field(
        "ndcg@10",
        description="validation metric: hr@K, ndcg@K, recall@K, map@K or mrr; for ranking auc, gauc, logloss or ne, with several "
        "labels as in auc/click (default for ranking: auc of the first label)",
    )
    patience: int = Field(5, ge=1, description="evaluations without improvement before training stops")


class DaysConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Training day by day: the training impressions in the order of time, each once. The table alone turns it on."""

    length: int | str = Field(
        "1d",
        description='how long a day is: a number and s, m, h, d or w, as in "12h" or "1d", where times are those of a clock; an '
        "integer is in the unit of the time column, which holds integers then",
    )
    start: int | str | None = Field(
        None,
        description="a moment at which a day begins, in the form of split.validation_time; others begin a whole number of days "
        "later, and impressions before it are history only, never trained (none: days begin at multiples of length since 1970, "
        "or since 0, and the first is that of the first training impression)",
    )
    evaluate_next: bool = Field(
        True, description="after each day, evaluate the model on the next one, before it trains on it"
    )

    @model_validator(mode="after")
    def _length_is_one(self) -> "DaysConfig":
        if isinstance(self.length, int) and self.length < 1:
            raise ValueError(f"length = {self.length} must be at least 1")
        if isinstance(self.length, str) and not re.fullmatch("[1-9][0-9]*[smhdw]", self.length):
            raise ValueError(f'length = {self.length!r}: write a number and one of s, m, h, d, w, as in "1d" or "12h"')
        return self


class TrainConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The training loop."""

    epochs: int = Field(10, ge=1, description="passes over the training histories")
    days: DaysConfig | None = Field(
        None, description="train day by day, not in epochs (leave out the table for epochs)"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps, even inside an epoch")
    batch_size: int = Field(128, ge=1, description="histories in the global batch, all workers together")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="input events that the global batch has at most, in place of batch_size: it takes as many histories as fit",
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="input events (and impressions) that a worker encodes at a time: its share of a batch goes forward and "
        "backward in pieces of whole histories, which bounds the memory of activations; the step stays that of the whole batch "
        "(none: all at once)",
    )
    long_histories: Literal["recent", "windows"] = Field(
        "recent",
        description="of histories longer than model.max_history: train the most recent events, or all of them in consecutive "
        "windows of that length",
    )
    optimizer: Literal["adamw", "lion", "adagrad", "sgd"] = Field(
        "adamw", description="optimizer of the dense weights; tables have their own"
    )
    learning_rate: float = Field(1e-3, gt=0.0, description="step size of the dense optimizer")
    betas: list[Annotated[float, Field(ge=0.0, lt=1.0)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="decay per step of the averages that adamw (none: 0.9 and 0.999) and lion (none: 0.9 and 0.99) keep",
    )
    eps: float = Field(1e-8, gt=0.0, description="what adamw adds to its denominator")
    weight_decay: float = Field(
        0.0,
        ge=0.0,
        description="decoupled weight decay of adamw and lion, times the step size at each step; of matrices only, never of "
        "biases, norms and other weights of one dimension",
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"] = Field(
        "constant",
        description="how the step sizes fall from the full rate, after warm-up: to schedule_floor at the last step, all the way "
        "linearly or as a cosine; with the inverse square root of the step; or linearly over the last decay_share of the steps",
    )
    schedule_floor: float = Field(
        0.02, ge=0.0, le=1.0, description="share of the full rate below which a schedule does not go"
    )
    decay_share: float = Field(
        0.2, gt=0.0, le=1.0, description="share of all steps over which warmup_stable_decay falls"
    )
    schedule_tables: bool = Field(
        True,
        description="warm-up and schedule hold for the step sizes of tables too, not only for those of dense weights",
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the step sizes rise linearly from zero")
    clip_norm: float | None = Field(
        None,
        gt=0.0,
        description="the largest L2 norm of a step's gradient, of all dense weights and tables and all workers together; a longer "
        "gradient is shortened to it (costs one more exchange of the tables' gradients)",
    )
    precision: Precision = Field(
        "float32",
        description="what encoder and objective compute in while training: bfloat16 is for matrix products and attention "
        "(autocast); weights, their optimizers, tables, sums of losses and evaluation stay float32",
    )
    ema_decay: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="decay per step of a moving average of the dense weights, which is what is evaluated in the place of the "
        "weights that are trained (none: no average); while there were few steps the average is shorter",
    )
    max_nonfinite_steps: int = Field(
        10, ge=0, description="steps in a row that may be skipped because the loss or gradient is not finite"
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="epochs between evaluations on the validation split")
    early_stopping: EarlyStoppingConfig | None = Field(
        default_factory=EarlyStoppingConfig, description="when to stop early (leave out the table for the defaults)"
    )
    log_every_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl and TensorBoard")
    ledger: bool = Field(
        False,
        description="write the ids of the histories trained at each step to ledger/ in the run folder (for audits)",
    )

    @model_validator(mode="after")
    def _settings_of_the_optimizer(self) -> "TrainConfig":
        if self.weight_decay and self.optimizer not in _DEFAULT_BETAS:
            raise ValueError(
                f"weight_decay = {self.weight_decay} is of adamw and lion, not of optimizer = {self.optimizer!r}; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _days_go_on(self) -> "TrainConfig":
        """Each day is trained once, and more days may come: there is neither a number of epochs nor a last step."""
        if self.days is None:
            return self
        for name in ("epochs", "evaluate_every_epochs"):
            if getattr(self, name) != TrainConfig.model_fields[name].default:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: days take the place of epochs (train.days); leave it out"
                )
        if self.needs_the_end:
            raise ValueError(
                f"schedule = {self.schedule!r} needs to know the last step, and days go on as long as logs come (train.days); "
                'choose "constant" or "inverse_sqrt"'
            )
        if self.early_stopping is not None:
            raise ValueError(
                'early_stopping goes back to an earlier epoch, and days go on (train.days); leave it out, or set it to "none"'
            )
        return self

    @property
    def betas_used(self) -> tuple[float, float]:
        """The decay of both averages of the dense optimizer: as set, or as is usual for it."""
        first, second = self.betas or _DEFAULT_BETAS.get(self.optimizer, (0.0, 0.0))
        return first, second

    @property
    def needs_the_end(self) -> bool:
        """Whether the rate of a step depends on how many steps there will be."""
        return self.schedule not in ("constant", "inverse_sqrt")


def daily_training_reason(train: TrainConfig, split: LeaveOneOutConfig | GlobalTimeConfig, task: str) -> str | None:
    """What stands against train.days, or none."""
    if train.days is None:
        return None
    if task != "ranking":
        return f"train.days goes through impressions, and model.task = {task!r} has none; leave out [train.days]"
    if split.kind != "global_time":
        return 'train.days needs split.kind = "global_time": what is trained has to end before what is held out begins'
    return None


_DEFAULT_BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}


class CheckpointConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """When to save, and how many checkpoints to keep."""

    every_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints, besides those at evaluations, stops and the end"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept; the best one is kept besides")


class EvaluateConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Full-catalogue evaluation on held-out events."""

    ks: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=lambda: [1, 5, 10, 20, 50],
        min_length=1,
        description="cut-offs K of the metrics hr@K, ndcg@K, recall@K, map@K and coverage@K",
    )
    mask_seen: bool = Field(True, description="never rank items of the user's own history")
    targets: Literal["all", "first"] = Field(
        "all", description="of several held-out events of a user: all as one set, or only the first"
    )
    batch_size: int = Field(512, ge=1, description="histories scored at a time, all workers together")
    score_block_items: int = Field(
        65536, ge=16, description="items scored at a time on each worker; bounds memory to batch x block numbers"
    )
