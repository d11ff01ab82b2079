"""Unpickling that runs nothing but what it is told to: for files that somebody else may have written.

A pickle names functions, which are called when it is read. Here each name has to be admitted before it is even imported.
"""

import pickle
from collections.abc import Callable
from typing import IO, Any


class ForbiddenPickleError(Exception):
    """A pickle asked for a name that is not admitted; `str()` is that name. Nothing was run."""


def restricted_load(file: IO[bytes], admits: Callable[[str, str], bool]) -> Any:
    """Unpickle a file whose every (module, name) satisfies `admits`.

    What is admitted may be called with any arguments, so it must be harmless. Raises ForbiddenPickleError for another name, and
    whatever unpickling raises for damaged bytes.
    """
    return _Unpickler(file, admits).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], admits: Callable[[str, str], bool]) -> None:
        super().__init__(file)
        self._admits = admits

    def find_class(self, module: str, name: str) -> Any:
        # A dotted name would lead from what is admitted to whatever its attributes are.
        if "." in name or not self._admits(module, name):
            raise ForbiddenPickleError(f"{module}.{name}")
        return super().find_class(module, name)
