"""The error for tables that cannot be sharded as configured, and errors that are sent between processes."""

import pickle


class PlacementError(ValueError):
    """A table cannot be placed as configured. The message names the table, the reason and the setting to change."""


def picklable(error: Exception) -> Exception:
    """Return `error` if it survives pickling, else a summary: its nearest base class that survives, with its text.

    Exceptions of other libraries can hold locks or open files, or need more arguments than they pass on.
    """
    if _survives(error):
        return error
    text = str(error) or type(error).__name__
    for kind in type(error).__mro__[1:]:
        if issubclass(kind, Exception) and kind.__module__ != "builtins":
            try:
                summary = kind(text)
            except Exception:  # noqa: BLE001 - a constructor of another library: the next base class may work
                continue
            if _survives(summary):
                return summary
    return RuntimeError(f"{type(error).__name__}: {text}")


def _survives(error: Exception) -> bool:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - any error of another library's pickling
        return False
    return type(copy) is type(error) and str(copy) == str(error)
