"""The devices of a plan, their speed, and the constants that correct the speeds to those of real steps. Imports no torch."""

import os
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from sharding.config import DevicesConfig
from sharding.errors import PlacementError

GIB = 1024**3


@dataclass(frozen=True)
class CostConstants:
    """The constants of the cost model (sharding.planning.costs). `calibrate` fits them to a run.

    Factors multiply times that follow from the topology's figures (1: as fast as these). Constants named seconds_per_...
    multiply counts.
    """

    latency: float  # of collective operations, times the topology's latency_seconds
    network: float  # of bytes between ranks
    seconds_per_input_id: float  # ids sorted by rank and table, before the lookup
    lookup_read: float  # of bytes of rows read, at random places
    lookup_write: float  # of bytes that a look-up returns
    seconds_per_lookup_id: float
    copy: float  # of bytes of rows and gradients that the receiver reorders
    update_rows: float  # of bytes of rows and optimizer state read and written
    update_gradients: float  # of bytes of gradients read
    seconds_per_update_id: float  # ids sorted by row
    host_access: float  # of bytes of rows in host memory, read or written by a GPU


# CPU: close to measurements of TorchRec on two cores, for 13,500 ids of rows of 64 numbers among 10^6 rows: 9 ms forward and 20 ms
# backward on one rank, 21 and 30 ms on two. Bags (26 million rows looked up in a second, 1.9 million updated) fit the same figures.
# GPU: not measured; 80 % of the bandwidth for reads of whole rows, the sort of ids by row as one more pass, and a tenth of
# host_bandwidth for rows in host memory, as in TorchRec's planner.
CONSTANTS = {
    "cpu": CostConstants(
        latency=1.0,
        network=1.0,
        seconds_per_input_id=2e-7,
        lookup_read=1.0,
        lookup_write=12.0,
        seconds_per_lookup_id=2e-8,
        copy=6.0,
        update_rows=4.0,
        update_gradients=50.0,
        seconds_per_update_id=3e-7,
        host_access=1.0,
    ),
    "cuda": CostConstants(
        latency=1.0,
        network=1.25,
        seconds_per_input_id=5e-11,
        lookup_read=1.25,
        lookup_write=1.25,
        seconds_per_lookup_id=2e-11,
        copy=2.0,
        update_rows=1.25,
        update_gradients=1.25,
        seconds_per_update_id=2e-10,
        host_access=10.0,
    ),
}


@dataclass(frozen=True)
class Topology:
    """Devices and hosts. Memory is in bytes, bandwidths are in bytes per second and device."""

    device: Literal["cpu", "cuda"]
    num_devices: int  # number of ranks
    devices_per_host: int
    device_memory: int  # of one device
    host_memory: int = 0  # of one host, shared by its devices, for tables outside of device memory
    reserved_fraction: float = 0.15  # part of device memory for everything but tables
    device_bandwidth: float = 13e9  # of a device's own memory
    host_bandwidth: float = 13e9  # between a device and its host's memory
    intra_host_bandwidth: float = 2e9
    inter_host_bandwidth: float = 1e9
    latency_seconds: float = 3e-3  # of one collective operation of any size
    constants: CostConstants | None = field(default=None, kw_only=True)

    @property
    def costs(self) -> CostConstants:
        """Return `constants`, or the defaults of the device if there are none."""
        return self.constants or CONSTANTS[self.device]

    @property
    def capacity_bytes(self) -> int:
        """Return the bytes of one device for tables and their buffers."""
        return int(self.device_memory * (1.0 - self.reserved_fraction))


# Per device: HBM, its bandwidth, NVLink per direction, the network card of one GPU, PCIe per direction; host memory per host of
# 8. Sources: NVIDIA's data sheets of A100 (2,039 GB/s, NVLink 600 GB/s both ways), H100 SXM (3.35 TB/s, 900 GB/s) and H200 (4.8
# TB/s); DGX A100 (8 x 200 Gb/s, PCIe 4, 2 TB), DGX H100 and H200 (8 x 400 Gb/s, PCIe 5, 2 TB). Memory is without the driver's
# part. latency_seconds: a small NCCL collective takes about 20 us within a host, more between hosts; not from a data sheet.
DEVICES = {
    "a100-80gb": (79 * GIB, 2.039e12, 300e9, 25e9, 32e9),
    "h100-80gb": (79 * GIB, 3.35e12, 450e9, 50e9, 64e9),
    "h200-141gb": (139 * GIB, 4.8e12, 450e9, 50e9, 64e9),
}


def described(name: str, num_devices: int, devices_per_host: int = 8) -> Topology:
    """Return the topology of a preset. Raises PlacementError for an unknown name."""
    if name not in DEVICES:
        raise PlacementError(f"device {name!r} is not known; choose one of {', '.join(DEVICES)}, or state its figures")
    memory, device_bandwidth, intra_host_bandwidth, inter_host_bandwidth, host_bandwidth = DEVICES[name]
    return Topology(
        "cuda",
        num_devices,
        min(devices_per_host, num_devices),
        memory,
        host_memory=2 * 10**12,
        device_bandwidth=device_bandwidth,
        host_bandwidth=host_bandwidth,
        intra_host_bandwidth=intra_host_bandwidth,
        inter_host_bandwidth=inter_host_bandwidth,
        latency_seconds=3e-5,
    )


def topology_of(config: DevicesConfig, num_devices: int, machine: Topology) -> Topology:
    """Return num_devices devices of the config.

    Unset figures are those of `machine`, which is measured or `described`.
    """
    known = {f.name for f in fields(Topology)}
    stated = {name: value for name, value in config.model_dump().items() if value is not None and name in known}
    devices_per_host = min(config.devices_per_host or machine.devices_per_host, num_devices)
    return replace(machine, **{**stated, "num_devices": num_devices, "devices_per_host": devices_per_host})


def this_machine(num_devices: int) -> Topology:
    """Return num_devices workers on this machine's processors, which share its memory. Bandwidths are not measured here."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Topology("cpu", num_devices, num_devices, memory // num_devices)
