"""What is unlucky about a plan that works: one line each. Imports no torch."""

from collections.abc import Sequence

from sharding.plan import Plan
from sharding.planning.load import TableLoad
from sharding.planning.prediction import Prediction
from sharding.planning.topology import Topology


def warnings_of(plan: Plan, prediction: Prediction, loads: Sequence[TableLoad], topology: Topology) -> list[str]:
    """None if there is nothing to say."""
    return []
