"""Settings of the inputs of an encoder besides items. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field

TimePart = Literal["gap", "hour", "weekday"]
# Number of learned vectors of each part. For a gap, row 0 is that of the first event of a history, and row 1 + k that of
# 2^(k/2) - 1 to 2^((k + 1)/2) - 1 seconds.
NUM_TIME_ROWS: dict[TimePart, int] = {"gap": 65, "hour": 24, "weekday": 7}
TimeUnit = Literal["seconds", "milliseconds", "microseconds"]


class InputsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """What the encoder is told of an event besides its item, and of the moment for which it recommends."""

    event_features: list[str] | None = Field(
        None,
        description="features of events (logs.features) that are added to the vector of an event's item; none takes all, "
        "[] takes no feature",
    )
    user_features: list[str] | None = Field(
        None,
        description="features of users (logs.users.features) that are added to every event of the user; none takes all",
    )
    candidate_features: list[str] | None = Field(
        None,
        description="ranking: features of impressions (logs.features) that scores are computed from; none takes all",
    )
    time: list[TimePart] = Field(
        default_factory=list,
        description="what of an event's own time is added to it, as learned vectors: gap (to the event before, in "
        "logarithmic buckets), hour (of the day, UTC), weekday (UTC)",
    )
    request_time: bool = Field(
        False,
        description="whether encoders that look at times are told when a recommendation is asked for: in training the time of the "
        "target, in evaluation that of the first held-out event; otherwise the time of the last event stands in for it",
    )
    time_unit: TimeUnit | None = Field(
        None,
        description="unit of integer times; none tells it from their size, as that of a clock that counts from 1970",
    )
