"""Settings with credentials inside URIs, which are refused before they are written or shown anywhere."""

from collections.abc import Iterator
from typing import Any

from trainer.settings import plain_values
from trainer.storage.objects.credentials import refusal_of


def refusals_in(values: Any) -> Iterator[str]:
    """Yield "setting: reason" for every text with credentials in nested plain values."""
    for place, value in plain_values(values):
        if isinstance(value, str) and (reason := refusal_of(value)) is not None:
            yield f"{place}: {reason}"
