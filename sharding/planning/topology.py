"""The devices that a plan is made for, and how fast they are. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

GIB = 1024**3


@dataclass(frozen=True)
class Topology:
    """num_devices ranks, devices_per_host of them on each host. Memory in bytes, bandwidths in bytes per second and device.

    device_memory: of one device; reserved_fraction of it is kept for everything but tables. host_memory: of one host, shared
    by its devices, for tables that lie outside of device memory. device_bandwidth: of a device's own memory; host_bandwidth:
    between a device and its host's memory; latency_seconds: of one collective operation, whatever it carries.
    """

    device: Literal["cpu", "cuda"]
    num_devices: int
    devices_per_host: int
    device_memory: int
    host_memory: int = 0
    reserved_fraction: float = 0.15
    device_bandwidth: float = 13e9
    host_bandwidth: float = 13e9
    intra_host_bandwidth: float = 2e9
    inter_host_bandwidth: float = 1e9
    latency_seconds: float = 1e-3
