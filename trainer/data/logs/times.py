"""Times that are text, as timestamps in UTC: ISO 8601, or the format of a setting. Formats are never guessed."""

from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.logs.time_formats import pattern_of, split_at_fraction, without_fraction

MICROSECONDS = pa.timestamp("us")
UTC = pa.timestamp("us", "UTC")
SAMPLE_ROWS = 64
_ZONE = r"[:T ]\d.*(?:Z|[+-]\d\d(?::?\d\d)?)$"
_FINE = r"(\.\d{6})\d{1,3}"  # nanoseconds are cut to microseconds, as those of Parquet are


def is_iso(values: pa.Array | pa.ChunkedArray) -> bool:
    """Return whether all texts are ISO dates, or dates with times. The first ones are tried alone, because a failure is slow."""
    for timestamp_type in (MICROSECONDS, UTC):
        with suppress(pa.ArrowInvalid):  # one cast is enough where all of them name a zone, or none does
            values[:SAMPLE_ROWS].cast(timestamp_type)
            values.cast(timestamp_type)
            return True
    try:
        parse_iso(values[:SAMPLE_ROWS])
        parse_iso(values)
    except pa.ArrowInvalid:
        return False
    return True


def has_zone(values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """Return a mask of the ISO texts that name a zone."""
    return pc.match_substring_regex(values, _ZONE)


def parse_iso(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Parse ISO text as timestamps in UTC; text without a zone is UTC. Raises ArrowInvalid for any other text."""
    none = pa.scalar(None, pa.string())
    values = pc.replace_substring_regex(values, _FINE, r"\1")
    zoned = has_zone(values)  # pyarrow reads either kind, but not both in one column
    plain = pc.if_else(zoned, none, values).cast(MICROSECONDS)
    if not pc.any(zoned).as_py():
        return plain
    shifted = pc.if_else(zoned, values, none).cast(UTC).cast(MICROSECONDS)
    return pc.coalesce(plain, shifted)


def parse_format(values: pa.Array | pa.ChunkedArray, format: str) -> pa.ChunkedArray:
    """Parse text in a strptime format as timestamps in UTC. Raises ArrowInvalid for text that does not fit.

    strptime reads 02/30 as March 1st. Here a day that the month does not have is refused.
    """
    parts = pc.extract_regex(values, pattern_of(format))
    unfit = pc.and_(parts.is_null(), values.is_valid())
    if pc.any(unfit).as_py():
        raise pa.ArrowInvalid("text in another format")
    whole = values
    if (around := split_at_fraction(format)) is not None:
        before, after = around
        whole = pc.replace_substring_regex(values, f"^({before})[.,]\\d+({after})$", r"\1\2")
    moments = pc.strptime(whole, without_fraction(format), "us", error_is_null=False)
    local = moments = moments.cast(MICROSECONDS)
    if "%z" in format:
        local = pc.add(moments, _offset(pc.struct_field(parts, "zone")))
    day = pc.struct_field(parts, "day").cast(pa.int64())
    if not pc.all(pc.equal(pc.day(local), day), min_count=0).as_py():
        raise pa.ArrowInvalid("a day that the month does not have")
    if around is not None:
        digits = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.struct_field(parts, "fraction"), 6, "0"), 0, 6)
        moments = pc.add(moments, digits.cast(pa.int64()).cast(pa.duration("us")))
    return moments


def _offset(zone: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the durations of offsets such as Z, +02:00 or -0530."""
    digits = pc.replace_substring(pc.replace_substring(zone, "Z", "+0000"), ":", "")
    hours = pc.utf8_slice_codeunits(digits, 1, 3).cast(pa.int64())
    minutes = pc.add(pc.multiply(hours, 60), pc.utf8_slice_codeunits(digits, 3, 5).cast(pa.int64()))
    signed = pc.if_else(pc.starts_with(digits, "-"), pc.negate(minutes), minutes)
    return pc.multiply(signed, 60_000_000).cast(pa.duration("us"))
