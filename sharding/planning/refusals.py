"""The error message if tables do not fit. Imports no torch."""

from collections.abc import Mapping, Sequence

from sharding.planning.layout import Layout
from sharding.planning.options import Option
from sharding.planning.topology import Topology
from sharding.planning.units import bytes_text


def no_room(options: Mapping[str, Sequence[Option]], furthest: Layout, topology: Topology) -> str:
    """Return the message for a table that does not fit.

    It is a table that fits nowhere even alone, or else one that has no room in `furthest`, the layout with the most tables.
    """
    alone = [
        name
        for name, choices in options.items()
        if all(Layout(topology, o.asking_bytes).best_places(o) is None for o in choices)
    ]
    missing = alone or [name for name in options if name not in furthest.tables]
    name = max(missing, key=lambda name: _smallest(options[name]).block_bytes)
    option = _smallest(options[name])
    held = option.block_bytes + option.asking_bytes
    buffers = max(0.0, held - option.weights_bytes - option.optimizer_bytes)
    parts = (
        f"{bytes_text(option.weights_bytes)} weights, {bytes_text(option.optimizer_bytes)} optimizer state, "
        f"{bytes_text(buffers)} buffers of a step"
    )
    text = (
        f"tables.{name} needs {bytes_text(held)} on one of {topology.num_devices} workers ({parts}), each with room for "
        f"{bytes_text(topology.capacity_bytes)} (plan.device_memory = {bytes_text(topology.device_memory)} less "
        f"{100 * topology.reserved_fraction:.0f} % reserved)"
    )
    if not alone:
        total = topology.capacity_bytes * topology.num_devices
        text += (
            f", and the other tables take {bytes_text(furthest.used_bytes)} of the {bytes_text(total)} of all workers"
        )
    return f"{text}; {', or '.join(_remedies(name, options[name], topology))}"


def _smallest(choices: Sequence[Option]) -> Option:
    """Return the smallest option, in device memory if possible."""
    within = [option for option in choices if not option.host_bytes]
    return min(within or choices, key=lambda option: option.block_bytes)


def _remedies(name: str, choices: Sequence[Option], topology: Topology) -> list[str]:
    remedies = ["raise cluster.num_workers or plan.device_memory"]
    option = _smallest(choices)
    if topology.num_devices > 1 and not any(choice.table.sharding == "row_wise" for choice in choices):
        remedies.append(f"let tables.{name}.sharding be row_wise, which spreads it over all workers")
    if option.optimizer_bytes > option.weights_bytes / 4:
        remedies.append(f"choose a tables.{name}.optimizer with less state, such as rowwise_adagrad")
    if option.block_bytes > 2 * (option.weights_bytes + option.optimizer_bytes):
        remedies.append("lower train.batch_size, which the buffers of a step grow with")
    if any(choice.host_bytes for choice in choices):
        remedies.append(f"raise plan.host_memory, now {bytes_text(topology.host_memory)} per host")
    elif topology.device == "cuda" and topology.host_memory == 0:
        remedies.append("set plan.host_memory, for tables that do not fit on GPUs")
    elif topology.device == "cuda":
        remedies.append(f"set tables.{name}.kernel = fused_uvm_caching")
    return remedies
