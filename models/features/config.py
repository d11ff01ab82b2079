"""Settings of the inputs of an encoder besides items. Imports no torch."""

from typing import Literal

from pydantic import BaseModel, Field

TimePart = Literal["gap", "hour", "weekday"]
# Learned vectors of each part. Of a gap, row 0 is that of the first event of a history, and row 1 + k that of
# 2^(k/2) - 1 to 2^((k + 1)/2) - 1 seconds.
NUM_TIME_ROWS: dict[TimePart, int] = {"gap": 65, "hour": 24, "weekday": 7}
TimeUnit = Literal["seconds", "milliseconds", "microseconds"]


class InputsConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Inputs of the encoder besides items: features, times, and the time of the request."""

    event_features: list[str] | None = Field(
        None,
        description="features of events (logs.features) that are added to the item vector of an event. [] adds none; default: "
        "all",
    )
    user_features: list[str] | None = Field(
        None,
        description="features of users (logs.users.features) that are added to each event of the user; default: all",
    )
    candidate_features: list[str] | None = Field(
        None,
        description="ranking: features of impressions (logs.features) that scores are computed from; default: all",
    )
    time: list[TimePart] = Field(
        default_factory=list,
        description="learned vectors of an event's time that are added to it: gap (to the event before, in logarithmic "
        "buckets), hour (of the day, UTC), weekday (UTC)",
    )
    request_time: bool = Field(
        False,
        description="pass the time of the request to encoders that use times: in training the time of the target, in "
        "evaluation that of the first held-out event. Otherwise the time of the last event takes its place",
    )
    time_unit: TimeUnit | None = Field(
        None,
        description="unit of integer times; default: inferred from their size, as Unix times",
    )
