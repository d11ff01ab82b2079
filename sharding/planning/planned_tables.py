"""A plan with its inputs. Imports no torch."""

from dataclasses import dataclass

from sharding.config import CommunicationConfig
from sharding.plan import Plan
from sharding.planning.load import TableLoad
from sharding.planning.topology import Topology


@dataclass(frozen=True)
class PlannedTables:
    """A plan with the loads, devices and settings that it was computed from."""

    plan: Plan
    loads: tuple[TableLoad, ...]
    topology: Topology
    communication: CommunicationConfig
    warnings: tuple[str, ...]  # about the plan, a line each
