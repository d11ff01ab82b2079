"""Errors by which a command ends, and the messages of exceptions from other layers. No ray, no torch."""

from cluster.doctor.packages import is_optional, missing_message
from sharding.errors import PlacementError
from trainer.errors import UserError
from trainer.storage.files import disk_refusal


class Interrupted(BaseException):
    """A signal that ends the command.

    Not a KeyboardInterrupt, which typer would end without a message, and no Exception, which a library might handle.
    """

    def __init__(self, number: int, message: str = "interrupted; run the same command again to resume") -> None:
        super().__init__(number, message)
        self.number = number
        self.message = message

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """Exit code by the convention of shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class StoppedError(Exception):
    """The user asked to stop, and everything is saved. The message says how to resume."""


class RunFailedError(Exception):
    """A stage failed for a reason that the user cannot fix. The message is one line."""


class WorkersFailedError(RuntimeError):
    """Workers failed for a reason that the user cannot fix. The message is one line; `trace` is for the log."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.message = message
        self.trace = trace

    def __str__(self) -> str:
        return self.message


class JobCancelledError(Exception):
    """The driver no longer needs the result of a job, and has ended its workers."""


class MoveError(Exception):
    """A rank has saved a checkpoint, and ends so that the group starts again on other nodes. No failure."""


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
