"""A plan with all that it was made from. Imports no torch."""

from dataclasses import dataclass

from sharding.config import CommunicationConfig
from sharding.plan import Plan
from sharding.planning.load import TableLoad
from sharding.planning.topology import Topology


@dataclass(frozen=True)
class PlannedTables:
    """warnings: what is unlucky about the plan, a line each."""

    plan: Plan
    loads: tuple[TableLoad, ...]
    topology: Topology
    communication: CommunicationConfig
    warnings: tuple[str, ...]
