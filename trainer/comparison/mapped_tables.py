"""Tables in temporary files (TMPDIR), so that a comparison holds those of one run at a time in memory. No torch."""

import pyarrow as pa

from trainer.evaluation.spooled import LEAST_BYTES, enough_space
from trainer.storage.mapped import mapped_table


def mapped(table: pa.Table) -> pa.Table:
    """Return a table with the same rows, of which each column is one array in a temporary file; a small table stays in memory."""
    whole = table.combine_chunks()
    if table.nbytes < LEAST_BYTES:
        return whole
    with enough_space():
        return mapped_table(whole)
