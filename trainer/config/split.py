"""The section `[split]`."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class LeaveOneOutConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The last event of each user is the test target, and the event before it is the validation target."""

    kind: Literal["leave_one_out"] = Field("leave_one_out", description="kind of split")
    min_events: int = Field(
        3,
        ge=3,
        description="minimum number of events of a user who is validated and tested. The events of other users are all trained "
        "on",
    )
    validation_share: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of users with a validation target, chosen by a hash of their ids. The event before the last of the "
        "other users is trained on",
    )


class GlobalTimeConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Events before `validation_time` are trained on, later ones before `test_time` are validated, and the rest are tested."""

    kind: Literal["global_time"] = Field(description="kind of split")
    validation_time: int | str = Field(
        description="start of the validation period: an integer in the unit of the time column, or an ISO date or date and "
        "time (UTC) if that column holds timestamps"
    )
    test_time: int | str = Field(description="start of the test period, in the same form")

    @model_validator(mode="after")
    def _check_times(self) -> "GlobalTimeConfig":
        if type(self.validation_time) is not type(self.test_time):
            raise ValueError("validation_time and test_time must have the same form: two integers or two ISO dates")
        if not self.validation_time < self.test_time:  # type: ignore[operator]
            raise ValueError("validation_time must be earlier than test_time")
        return self


class LastNConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """The last events of each user are test targets, and as many events before them validation targets."""

    kind: Literal["last_n"] = Field(description="kind of split")
    num_targets: int = Field(ge=1, description="number of test targets of a user, and of validation targets")
    min_events: int | None = Field(
        None,
        ge=3,
        description="minimum number of events of a user who is validated and tested. The events of other users are all trained "
        "on; default: 2 num_targets + 1",
    )

    @model_validator(mode="after")
    def _check_min_events(self) -> "LastNConfig":
        if self.min_events is not None and self.min_events <= 2 * self.num_targets:
            raise ValueError(
                f"min_events = {self.min_events} leaves no training event besides {2 * self.num_targets} held-out ones; use at "
                f"least {2 * self.num_targets + 1}"
            )
        return self


class UserHoldoutConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Some users are never trained on. Their last events are targets, and their events before are history."""

    kind: Literal["user_holdout"] = Field(description="kind of split")
    test_share: float = Field(
        0.1, gt=0.0, lt=1.0, description="share of the users that are tested, chosen by a hash of their ids"
    )
    validation_share: float = Field(
        0.1, gt=0.0, lt=1.0, description="share of the users that are validated, chosen by a hash of their ids"
    )
    num_targets: int = Field(1, ge=1, description="number of targets of each of these users, the last events")

    @model_validator(mode="after")
    def _check_shares(self) -> "UserHoldoutConfig":
        if self.test_share + self.validation_share >= 1.0:
            raise ValueError("test_share and validation_share must leave users to train on: their sum must be below 1")
        return self


SplitConfig = Annotated[
    LeaveOneOutConfig | LastNConfig | GlobalTimeConfig | UserHoldoutConfig, Field(discriminator="kind")
]
