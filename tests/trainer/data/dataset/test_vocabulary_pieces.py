"""Values of a vocabulary, read in pieces: the same values, and the same rows of hashed items."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import NextItemConfig
from sharding.config import HashIdsConfig, TableConfig
from tests.support.datasets import tiny_dataset
from trainer.data.dataset.features import hash_rows
from trainer.data.dataset.vocabulary import ids_of_numbers, iterate_values, read_values, read_vocabulary
from trainer.data.stream.catalogue_reader import read_catalogue
from trainer.errors import UserError


@pytest.mark.parametrize("group_rows", [1, 7, 1000])
def test_pieces_are_the_values_in_order(tmp_path, group_rows):
    manifest = tiny_dataset(tmp_path)
    path = tmp_path / manifest.vocabulary.path
    pq.write_table(pq.read_table(path), path, row_group_size=group_rows, write_page_checksum=True)
    pieces = list(iterate_values(tmp_path, manifest, "item"))
    assert pa.concat_arrays([values for _, values in pieces]) == read_values(tmp_path, manifest, "item")
    assert [first for first, _ in pieces] == list(
        range(1, 1 + len(read_values(tmp_path, manifest, "item")), group_rows)
    )


@pytest.mark.parametrize("group_rows", [7, 1000])
def test_hashed_items_have_the_rows_of_their_values(tmp_path, group_rows):
    """Also where numbers are not ids, and some items have none."""
    manifest = tiny_dataset(tmp_path)
    path = tmp_path / manifest.vocabulary.path
    table = pq.read_table(path)
    ids = np.zeros(table.num_rows, np.int32)
    ids[::-2] = np.arange(1, ids[::-2].size + 1)
    changed = table.set_column(table.column_names.index("id"), "id", pa.array(ids))
    pq.write_table(changed, path, row_group_size=group_rows, write_page_checksum=True)
    known = int(ids.max()) + 1
    assert ids_of_numbers(tmp_path, manifest).max() == known - 1
    config = HashIdsConfig(kind="hash", num_rows=11)
    tables = {"item": TableConfig(dim=4, ids=config)}
    counts = replace(manifest.counts, num_items=known - 1)
    smaller = replace(manifest, counts=counts, ids_are_numbers=False)
    catalogue = read_catalogue(tmp_path, smaller, tables, NextItemConfig())
    assert catalogue.rows is not None
    values = read_vocabulary(tmp_path, smaller).values
    assert catalogue.rows[1:known].tolist() == hash_rows(values, 11).tolist()


def test_a_damaged_vocabulary_is_named(tmp_path):
    manifest = tiny_dataset(tmp_path)
    path = tmp_path / manifest.vocabulary.path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        list(iterate_values(tmp_path, manifest, "item"))
