"""Results that are computed once and shared by the tests that only read them, such as finished trainings."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def shared(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with a memory: equal arguments, as repr shows them, give the result of the first call.

    Results, and the folders that they name, belong to all callers: read them only.
    """
    results: dict[str, T] = {}

    def remembered(*arguments: P.args, **options: P.kwargs) -> T:
        key = repr((arguments, sorted(options.items())))
        if key not in results:
            results[key] = function(*arguments, **options)
        return results[key]

    return remembered
