"""Suspicious ids and times in accepted rows, counted block by block for the checks of the data card.

Nothing here rejects or changes a value. logs.null_values and the type settings do.
"""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

MISSING_WORD, SPACES = "text of a missing value", "spaces around"
WITH_ZONE, WITHOUT_ZONE = "times with a zone", "times without a zone"
IDS = ("user", "item")
_WORDS = ("nan", "none", "null", "nil", "na", "n/a", "#n/a", "<na>", "(null)", "undefined", "nat", "\\n")
MISSING_WORDS = pa.array(sorted({form for word in _WORDS for form in (word, word.upper(), word.title(), "NaN", "NaT")}))


def observe_ids(events: pa.Table) -> Counter[str]:
    """Count events with the text of a missing value as user or item, and events with spaces around an id."""
    observed: Counter[str] = Counter()
    for name in IDS:
        if name in events.column_names and pa.types.is_string(events.schema.field(name).type):
            ids = events.column(name)
            words = pc.is_in(ids, value_set=MISSING_WORDS)
            spaces = pc.less(pc.binary_length(pc.utf8_trim_whitespace(ids)), pc.binary_length(ids))
            observed[f"{name}: {MISSING_WORD}"] = pc.sum(words).as_py() or 0
            observed[f"{name}: {SPACES}"] = pc.sum(spaces).as_py() or 0
    return +observed
