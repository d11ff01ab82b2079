"""The error of this package that a user can mend, and errors on their way between processes."""

import pickle


class PlacementError(ValueError):
    """A table cannot be placed as asked. The message names the table, the reason and the setting to change."""


def picklable(error: Exception) -> Exception:
    """Return `error` if it survives pickling, else a summary: its nearest base class that does, with its text.

    Other libraries' exceptions may hold locks or open files, or need more arguments than they pass on.
    """
    if _survives(error):
        return error
    text = str(error) or type(error).__name__
    for kind in type(error).__mro__[1:]:
        if issubclass(kind, Exception) and kind.__module__ != "builtins":
            try:
                summary = kind(text)
            except Exception:  # noqa: BLE001 - a constructor of another library: the next base class may do
                continue
            if _survives(summary):
                return summary
    return RuntimeError(f"{type(error).__name__}: {text}")


def _survives(error: Exception) -> bool:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever another library's pickling raises
        return False
    return type(copy) is type(error) and str(copy) == str(error)
