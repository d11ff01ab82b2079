"""Errors that the user can fix.

Every message says what is wrong, where, the likely cause, and what to change. The command line prints that message alone and exits
with 2. Attributes are plain and arguments positional, because errors are pickled when they travel between processes.
"""


class UserError(Exception):
    """Something that the user must change. `str()` is the whole message."""


class NonFiniteLossError(UserError):
    """Too many steps in a row with a non-finite loss or gradient."""


class LossSpikeError(UserError):
    """Too many steps in a row that were skipped for their high loss."""


class NonFiniteWeightsError(UserError):
    """Non-finite weights or optimizer states after `step` steps. `names` are those of the tensors. Nothing was saved."""

    def __init__(self, message: str, names: tuple[str, ...] = (), step: int = 0) -> None:
        super().__init__(message, names, step)
        self.message = message
        self.names = names
        self.step = step

    def __str__(self) -> str:
        return self.message


class CheckpointError(UserError):
    """A checkpoint that is missing, corrupt, or does not fit the model."""


class ReplicasDifferError(RuntimeError):
    """Copies of weights that must be equal on all ranks differ. A restart goes back to a checkpoint."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, for use in a message. If it has none, return the name of its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
