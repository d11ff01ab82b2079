"""Nodes that the cluster takes back, as people read of them."""

from cluster.workers.drains import drain_text


def test_the_text_names_machine_ranks_and_time_left() -> None:
    assert drain_text("a", [1], 30_000, now=10.0) == "the cluster takes back a, with rank 1, in 20 s"
    assert drain_text("a", [1, 3], 0) == "the cluster takes back a, with ranks 1, 3, soon"
