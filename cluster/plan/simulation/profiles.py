"""Profiles: the constants of kinds of devices, each with its source. Imports no torch.

Memory, bandwidths and latencies of tables are those of sharding.planning.topology.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from cluster.plan.simulation.config import SimulationConfig
from trainer.config.train import Precision

GIGA = 10**9
MEASURED = "measured on a machine of 2 cores with work of low priority, rounded (python -m benchmarks.simulation)"
DATA_SHEET = "data sheet"
ASSUMED = "assumed, not measured"
LLAMA = "419 unexpected interruptions of 2,048 hosts in 54 days (The Llama 3 Herd of Models, 2024, section 3.3.4, arXiv 2407.21783)"


@dataclass(frozen=True)
class Constant:
    """A constant with its source."""

    value: float
    source: str


@dataclass(frozen=True)
class Constants:
    """All constants of a simulation. None: it follows from the config or the dataset."""

    peak_flops: Constant
    efficiency: Constant
    memory_factor: Constant
    step_seconds: Constant
    block_seconds: Constant
    cores_per_host: Constant | None  # None: each worker has a device of its own
    busy_core_speed: Constant
    latency_seconds: Constant | None  # None: that of the topology
    sum_latency_seconds: Constant
    latency_per_doubling_seconds: Constant
    bytes_per_event: Constant | None
    read_bandwidth: Constant
    total_read_bandwidth: Constant
    write_bandwidth: Constant
    total_write_bandwidth: Constant
    copy_bandwidth: Constant
    host_mtbf_hours: Constant
    recovery_seconds: Constant
    checkpoint_seconds: Constant | None = None

    def number(self, name: str) -> float | None:
        """Return the value of a constant by its name, None if it has none."""
        constant: Constant | None = getattr(self, name)
        return None if constant is None else constant.value

    def values(self) -> dict[str, Any]:
        """Return all constants as plain values: value and source by name."""
        return {
            field.name: {"value": one.value, "source": one.source}
            for field in fields(self)
            if (one := getattr(self, field.name)) is not None
        }


# Peak of dense matrix products in bfloat16 and in float32 without TF32, from NVIDIA's data sheets of A100, H100 SXM and H200.
GPU_PEAKS: dict[str, dict[Precision, float]] = {
    "a100-80gb": {"bfloat16": 312e12, "float32": 19.5e12},
    "h100-80gb": {"bfloat16": 989e12, "float32": 67e12},
    "h200-141gb": {"bfloat16": 989e12, "float32": 67e12},
}


def gpu_profile(preset: str, precision: Precision, host_bandwidth: float) -> Constants:
    """Return the constants of a GPU preset.

    Args:
        preset: name of the GPU.
        precision: that of training.
        host_bandwidth: bytes per second between a GPU and the memory of its host.
    """
    return Constants(
        peak_flops=Constant(GPU_PEAKS[preset][precision], f"{DATA_SHEET} of {preset}, {precision}, dense"),
        efficiency=Constant(0.35, ASSUMED),
        memory_factor=Constant(1.25, f"80 % of the memory bandwidth; {ASSUMED}"),
        step_seconds=Constant(5e-3, ASSUMED),
        block_seconds=Constant(0.0, "launches of kernels are part of step_seconds"),
        cores_per_host=None,
        busy_core_speed=Constant(1.0, "workers do not share their devices"),
        latency_seconds=None,
        sum_latency_seconds=Constant(3e-5, ASSUMED),
        latency_per_doubling_seconds=Constant(1e-5, ASSUMED),
        bytes_per_event=None,
        read_bandwidth=Constant(5 * GIGA, ASSUMED),
        total_read_bandwidth=Constant(200 * GIGA, ASSUMED),
        write_bandwidth=Constant(3 * GIGA, ASSUMED),
        total_write_bandwidth=Constant(100 * GIGA, ASSUMED),
        copy_bandwidth=Constant(host_bandwidth / 2.0, f"half of the bandwidth to the host's memory; {ASSUMED}"),
        host_mtbf_hours=Constant(54 * 24 * 2048 / 419, LLAMA),
        recovery_seconds=Constant(180.0, ASSUMED),
    )


def cpu_profile(cores: int) -> Constants:
    """Return the constants of a CPU worker. cores: of a host like this machine."""
    return Constants(
        peak_flops=Constant(150e9, MEASURED),
        efficiency=Constant(0.16, MEASURED),
        memory_factor=Constant(1.8, MEASURED),
        step_seconds=Constant(0.6e-3, MEASURED),
        block_seconds=Constant(8.5e-3, MEASURED),
        cores_per_host=Constant(cores, "this machine"),
        busy_core_speed=Constant(0.85, MEASURED),
        latency_seconds=None,
        sum_latency_seconds=Constant(7e-3, MEASURED),
        latency_per_doubling_seconds=Constant(0.0, ASSUMED),
        bytes_per_event=None,
        read_bandwidth=Constant(
            0.80 * GIGA, "measured restore of a checkpoint (docs/results/benchmark_checkpoint.json)"
        ),
        total_read_bandwidth=Constant(10 * GIGA, ASSUMED),
        write_bandwidth=Constant(
            0.66 * GIGA, "measured write of a checkpoint (docs/results/benchmark_checkpoint.json)"
        ),
        total_write_bandwidth=Constant(10 * GIGA, ASSUMED),
        copy_bandwidth=Constant(1 * GIGA, ASSUMED),
        host_mtbf_hours=Constant(54 * 24 * 2048 / 419, f"{LLAMA}; hosts without GPUs fail less often"),
        recovery_seconds=Constant(8.5, "measured median of twelve faults on two workers (docs/results/recovery.json)"),
    )


def overridden(profile: Constants, config: SimulationConfig) -> Constants:
    """Return the profile with the constants that are set."""
    given = {
        name: Constant(float(value), "given")
        for section in (config.compute, config.network, config.storage, config.failures)
        for name, value in section
        if value is not None
    }
    return replace(profile, **given)
