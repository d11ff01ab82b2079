import pytest
from pydantic import ByteSize

from sharding.config import PlanConfig
from sharding.errors import PlacementError
from sharding.planning.topology import CONSTANTS, GIB, Topology, described, this_machine, topology_of


def test_settings_override_the_properties_of_the_machine() -> None:
    machine = described("h100-80gb", 8)
    config = PlanConfig(device_memory=ByteSize(40 * GIB), reserved_fraction=0.2, devices_per_host=4)
    topology = topology_of(config, 64, machine)
    assert (topology.num_devices, topology.devices_per_host) == (64, 4)
    assert topology.capacity_bytes == 32 * GIB
    assert topology.device_bandwidth == machine.device_bandwidth
    assert topology_of(PlanConfig(), 2, machine).devices_per_host == 2


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(PlacementError, match=r"'v100' is not known; choose one of a100-80gb, h100-80gb"):
        described("v100", 8)


def test_workers_share_the_memory_of_this_machine() -> None:
    one, two = this_machine(1), this_machine(2)
    assert one.device_memory == pytest.approx(2 * two.device_memory, abs=1)
    assert two.device_memory > 0


def test_constants_are_those_of_the_device_unless_fitted() -> None:
    assert Topology("cuda", 1, 1, GIB).costs == CONSTANTS["cuda"]
    assert Topology("cpu", 1, 1, GIB, constants=CONSTANTS["cuda"]).costs == CONSTANTS["cuda"]
