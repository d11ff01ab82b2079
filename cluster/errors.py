"""Errors with which a command ends, and the messages for people that exceptions of other layers amount to. No ray, no torch."""

from cluster.doctor.packages import is_optional, missing_message
from sharding.errors import PlacementError
from trainer.errors import UserError
from trainer.storage.files import disk_refusal


class StoppedError(Exception):
    """The user asked to stop; everything is saved. The message says how to resume."""


class RunFailedError(Exception):
    """A stage failed for a reason that the user's settings do not explain. The message is one line."""


def as_user_error(error: Exception) -> UserError | None:
    """Return the UserError that an exception amounts to, or None if the user can change nothing about it.

    These are tables that cannot be placed, disks that refuse a file, and packages that are not installed.
    """
    match error:
        case UserError():
            return error
        case PlacementError():
            return UserError(str(error))
        case OSError() if (refusal := disk_refusal(error)) is not None:
            return UserError(refusal)
        case ModuleNotFoundError() if is_optional(error.name):
            return UserError(missing_message("this command", [str(error.name)]))
        case _:
            return None
