"""Bytes, seconds and counts as text."""

_BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def bytes_text(number: float) -> str:
    """Format bytes, for example "9.54 GiB"."""
    unit = 0
    while number >= 999.5 and unit < len(_BYTES) - 1:
        number = number / 1024
        unit = unit + 1
    return f"{number:.0f} {_BYTES[0]}" if unit == 0 else f"{number:.3g} {_BYTES[unit]}"


def seconds_text(seconds: float) -> str:
    """Format seconds, for example "1.25 ms"."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995 or unit == "us":
            value = seconds * factor
            return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"
    raise AssertionError


def count_text(number: float) -> str:
    """Format a count, for example as "1.5 G". Numbers below 10,000 are not shortened."""
    for factor, unit in _COUNTS:
        if number >= max(factor, 9_999.5):
            return f"{number / factor:.3g} {unit}"
    return f"{number:,.0f}"
