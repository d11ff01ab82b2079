"""Errors that a user can mend, and how they read.

Every message says what is wrong, where, why it likely is so, and what to change. The command line prints exactly that and
exits with 2. Plain attributes and positional arguments: the error must survive pickling between processes.
"""


class UserError(Exception):
    """Something that the user must change. `str()` is the whole message."""


class NonFiniteLossError(UserError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class NonFiniteWeightsError(UserError):
    """Updates have made weights, or the state of an optimizer, not finite. `names` are those of the tensors; nothing was saved."""

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message, names)
        self.message = message
        self.names = names

    def __str__(self) -> str:
        return self.message


class CheckpointError(UserError):
    """A checkpoint is missing, corrupt, or does not fit the model."""


def first_line(error: BaseException) -> str:
    """What another library's error says, for use in a message; the name of its class if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
