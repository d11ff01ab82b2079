"""Tables are recognised among the tensors of a module."""

import pytest

from sharding.tables.local_shards import table_of


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("tables.collections.sharded_8.embeddings.device.weight", "device"),
        ("_dmp_wrapped_module.tables.collections.bags.embedding_bags.device.weight", "device"),
        ("embeddings.device.weight", "device"),
        ("tables.collections.sharded_8.embeddings.other.weight", None),
        ("inputs.events.device.weight", None),  # the projection of a feature with the name of its table
        ("items.projections.device.weight", None),
        ("device.weight", None),
    ],
)
def test_the_projection_of_a_feature_is_not_taken_for_its_table(parameter: str, expected: str | None) -> None:
    assert table_of(parameter, ("device", "item")) == expected
