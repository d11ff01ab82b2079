"""The section `[split]`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


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
