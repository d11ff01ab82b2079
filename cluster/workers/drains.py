"""Nodes that the cluster is about to take back: spot instances, maintenance, scaling down."""

import time
from collections.abc import Sequence

from ray._private import state


def draining_nodes() -> dict[str, int]:
    """Return the deadline of each node that is drained, in milliseconds since 1970, 0 without one; by Ray's id of the node."""
    nodes: dict[str, int] = state.state.get_draining_nodes()
    return nodes


def drain_text(host: str, ranks: Sequence[int], deadline: int, now: float | None = None) -> str:
    """Return what is about to happen, for people.

    Args:
        host: name of the machine.
        ranks: the ranks on it.
        deadline: milliseconds since 1970; 0 without one.
        now: seconds since 1970; None: the time of the call.
    """
    named = ", ".join(map(str, ranks))
    left = deadline / 1000 - (time.time() if now is None else now)
    when = f"in {max(0.0, left):.0f} s" if deadline else "soon"
    return f"the cluster takes back {host}, with rank{'s' * (len(ranks) > 1)} {named}, {when}"
