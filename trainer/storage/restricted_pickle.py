"""Unpickling that admits only named classes, for files from untrusted sources.

A pickle names functions, which are called when it is read. Here each name has to be admitted before it is imported.
"""

import pickle
from collections.abc import Callable
from typing import IO, Any


class ForbiddenPickleError(Exception):
    """A name in a pickle that is not admitted; `str()` is that name. Nothing was run."""


def restricted_load(file: IO[bytes], admits: Callable[[str, str], bool]) -> Any:
    """Unpickle a file if each of its (module, name) pairs satisfies `admits`.

    Admitted functions may be called with any arguments, so they must be harmless. Raises ForbiddenPickleError for another name,
    and any error of unpickling for damaged bytes.
    """
    return _Unpickler(file, admits).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], admits: Callable[[str, str], bool]) -> None:
        super().__init__(file)
        self._admits = admits

    def find_class(self, module: str, name: str) -> Any:
        # A dotted name would lead from an admitted class to any of its attributes.
        if "." in name or not self._admits(module, name):
            raise ForbiddenPickleError(f"{module}.{name}")
        return super().find_class(module, name)
