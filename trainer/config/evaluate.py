"""The section `[evaluate]`."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

from trainer.storage.objects.paths import path_of

BaselineName = Literal["popularity", "recent_popularity", "repeat_last", "co_occurrence", "ease"]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)


class EvaluateConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Full-catalogue evaluation on held-out events."""

    ks: list[Annotated[int, Field(ge=1, le=1000)]] = Field(
        default_factory=lambda: [1, 5, 10, 20, 50],
        min_length=1,
        description="cut-offs K of the metrics hr@K, ndcg@K, recall@K, precision@K, map@K, debiased_ndcg@K, coverage@K, novelty@K, "
        "ild@K and arp@K",
    )
    mask_seen: bool = Field(True, description="exclude items of the user's own history from the ranked list")
    targets: Literal["all", "first", "each"] = Field(
        "all",
        description="targets among several held-out events of a user. all: one set, ranked once; first: only the first; each: "
        "every event by itself, ranked from all events before it, held-out ones included",
    )
    candidates: str = Field(
        "all",
        min_length=1,
        description="items that are ranked. all: the whole catalogue; available: items with an event, of any user, not later "
        "than the target; otherwise a file of items (Parquet, CSV or text, one column)",
    )
    repeats: Literal["keep", "drop"] = Field(
        "keep",
        description="targets that the user has consumed before. drop leaves them out and counts them, so that only first "
        "consumptions are evaluated",
    )
    batch_size: int = Field(512, ge=1, description="histories scored at once, over all workers")
    score_block_items: int = Field(
        65536,
        ge=16,
        description="items scored at once on each worker. It bounds the memory to batch size x items numbers",
    )
    compiled_kernels: bool = Field(
        False,
        description="encode the histories of next-item models on CPUs by the kernels of train.compiled_kernels, in every "
        "evaluation of the run. They need what train.compiled_kernels needs. Scores differ from those without it by rounding",
    )
    baselines: list[BaselineName] | None = Field(
        None,
        description="baselines of next-item models that are evaluated with the model; default: all that fit the dataset. "
        "Reports name those that do not fit, with the reason",
    )
    slices: list[str] | None = Field(
        None,
        description="parts of the users with figures of their own: history_length, target_popularity, target_training_events, "
        "user_training_events, time_since_last_event, and the features user.NAME and item.NAME (of the first target). For "
        "ranking, parts of the impressions: history_length, item_impressions, user_impressions, time_since_last_event, hour, and "
        "the features user.NAME, item.NAME and impression.NAME; default: the first five, and the features of users and "
        "impressions with few values",
    )

    @property
    def candidates_file(self) -> Path | None:
        """Return the file of candidates, if `candidates` names one."""
        return None if self.candidates in ("all", "available") else path_of(self.candidates)

    def with_absolute_paths(self) -> "EvaluateConfig":
        """Return the settings for processes that run in other folders."""
        file = self.candidates_file
        return self if file is None else self.model_copy(update={"candidates": str(file.absolute())})
