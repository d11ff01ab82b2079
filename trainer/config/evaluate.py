"""The section `[evaluate]`."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

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
    targets: Literal["all", "first"] = Field(
        "all", description="targets among several held-out events of a user: all of them as one set, or only the first"
    )
    batch_size: int = Field(512, ge=1, description="histories scored at once, over all workers")
    score_block_items: int = Field(
        65536,
        ge=16,
        description="items scored at once on each worker. It bounds the memory to batch size x items numbers",
    )
    baselines: list[BaselineName] | None = Field(
        None,
        description="baselines of next-item models that are evaluated beside the model; default: all that fit the dataset. "
        "Reports name those that do not fit, with the reason",
    )
    slices: list[str] | None = Field(
        None,
        description="parts of the users with figures of their own: history_length, target_popularity, target_training_events, "
        "user_training_events, time_since_last_event, and the features user.NAME and item.NAME (of the first target); default: "
        "the first five, and the features of users with few values",
    )
