"""Figures, times and settings as text, for pages and terminals. Imports nothing large."""

import json
from datetime import UTC, datetime
from typing import Any


def figure_text(value: float | None) -> str:
    """Return a figure with four decimals; nothing for one that is not defined."""
    return "" if value is None else f"{value:.4f}"


def interval_text(bounds: list[float] | None) -> str:
    """Return a confidence interval as text; nothing where there is none."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""


def moment_text(seconds: float) -> str:
    """Return a moment in seconds since 1970 as a date and time in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: "3.2 s", "5 min 07 s", "2 h 05 min" or "2 d 7 h"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def setting_text(value: Any) -> str:
    """Return the value of a setting: text as it is, or quoted where spaces could not be seen, and everything else as JSON."""
    if isinstance(value, str) and value and value == value.strip():
        return value
    return json.dumps(value, ensure_ascii=False)
