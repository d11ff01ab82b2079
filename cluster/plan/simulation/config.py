"""Constants of a simulation: their names, units and files. Imports no torch.

simulation.toml                  [compute], [network], [storage], [failures], [histories], as in SimulationConfig
--set simulation.SECTION.KEY=V   one of them

A constant that is not set has the value of the profile of the devices (profiles.py), or of measured runs (calibration.py).
"""

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from cluster.config.explain import explain
from cluster.config.file import apply_override, read_values
from sharding.config import Bytes
from trainer.errors import UserError

PREFIX = "simulation."


class ComputeConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Speed of the dense part of a step."""

    peak_flops: float | None = Field(
        None, gt=0.0, description="peak rate of matrix products of one worker alone, in FLOP/s"
    )
    efficiency: float | None = Field(
        None, gt=0.0, le=1.0, description="share of peak_flops that the matrix products of a step reach"
    )
    memory_factor: float | None = Field(
        None, ge=0.0, description="time of reading and writing activations and weights, times plan.device_bandwidth"
    )
    step_seconds: float | None = Field(
        None, ge=0.0, description="seconds of a step that depend neither on its batch nor on the number of workers"
    )
    block_seconds: float | None = Field(
        None,
        ge=0.0,
        description="the same for each block of the encoder: the start of its operations, which small batches do not shorten",
    )
    cores_per_host: int | None = Field(
        None, ge=1, description="cores of a host, which CPU workers share; for GPUs the setting has no effect"
    )
    busy_core_speed: float | None = Field(
        None, gt=0.0, le=1.0, description="speed of a core while all cores of its host work, compared with one alone"
    )


class NetworkConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Latencies between ranks. Bandwidths are plan.intra_host_bandwidth and plan.inter_host_bandwidth."""

    latency_seconds: float | None = Field(
        None, ge=0.0, description="seconds of one collective of any size that looks up tables, on two ranks"
    )
    sum_latency_seconds: float | None = Field(None, ge=0.0, description="seconds of one sum over two ranks of any size")
    latency_per_doubling_seconds: float | None = Field(
        None, ge=0.0, description="seconds that are added to either latency with each doubling of the ranks"
    )


class StorageConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Files and their bandwidths, per second."""

    bytes_per_event: float | None = Field(None, gt=0.0, description="bytes in the dataset per training event")
    read_bandwidth: Bytes | None = Field(None, gt=0, description="bytes per second that a host reads")
    total_read_bandwidth: Bytes | None = Field(None, gt=0, description="bytes per second that all hosts together read")
    write_bandwidth: Bytes | None = Field(None, gt=0, description="bytes per second that a host writes")
    total_write_bandwidth: Bytes | None = Field(
        None, gt=0, description="bytes per second that all hosts together write"
    )
    copy_bandwidth: Bytes | None = Field(
        None, gt=0, description="bytes per second at which a worker copies tensors for a checkpoint"
    )


class FailuresConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Failures and checkpoints."""

    host_mtbf_hours: float | None = Field(None, gt=0.0, description="mean hours between failures of one host")
    recovery_seconds: float | None = Field(
        None, ge=0.0, description="seconds from a failure to the first step, without reading the checkpoint"
    )
    checkpoint_seconds: float | None = Field(
        None,
        gt=0.0,
        description="seconds of training between checkpoints; default: those of checkpoint.every_steps, or Daly's",
    )


class HistoriesConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Lengths of histories where there is no dataset."""

    mean_events: float | None = Field(
        None,
        ge=1.0,
        description="mean input events of a history before it is cut to model.max_history; default: all are that long",
    )
    variation: float | None = Field(
        None,
        ge=0.0,
        description="standard deviation of the lengths divided by their mean; they are distributed log-normally",
    )


class SimulationConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """All constants. None: those of the profile."""

    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    storage: StorageConfig = Field(default_factory=StorageConfig)
    failures: FailuresConfig = Field(default_factory=FailuresConfig)
    histories: HistoriesConfig = Field(default_factory=HistoriesConfig)


def read_constants_file(path: str | None, settings: list[str]) -> tuple[SimulationConfig, list[str]]:
    """Return the constants of a TOML file, overridden by settings, and the settings that are not of a simulation.

    Raises:
        UserError: a file that cannot be read, or an unknown or wrong constant.
    """
    values: dict[str, Any] = read_values(path) if path is not None else {}
    own = [setting.strip() for setting in settings if setting.strip().startswith(PREFIX)]
    for setting in own:
        apply_override(setting.removeprefix(PREFIX), values, "compute.efficiency=0.4")
    try:
        constants = SimulationConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, path or "simulation", SimulationConfig)) from None
    return constants, [setting for setting in settings if not setting.strip().startswith(PREFIX)]
