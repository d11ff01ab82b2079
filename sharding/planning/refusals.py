"""What to say when tables do not fit. Imports no torch."""

from collections.abc import Mapping, Sequence

from sharding.planning.layout import Layout
from sharding.planning.options import Option
from sharding.planning.topology import GIB, Topology


def no_room(options: Mapping[str, Sequence[Option]], furthest: Layout, topology: Topology) -> str:
    """Names the table that found no room in the layout that went furthest, or one that fits nowhere even alone."""
    alone = [
        name
        for name, choices in options.items()
        if all(Layout(topology, o.asking_bytes).best_places(o) is None for o in choices)
    ]
    missing = alone or [name for name in options if name not in furthest.tables]
    name = max(missing, key=lambda name: _smallest(options[name]).block_bytes)
    option = _smallest(options[name])
    held = option.block_bytes + option.asking_bytes
    buffers = held - (0 if option.host_bytes else option.weights_bytes + option.optimizer_bytes)
    parts = f"{gib(option.weights_bytes)} weights, {gib(option.optimizer_bytes)} optimizer state, {gib(buffers)} buffers of a step"
    text = (
        f"tables.{name} needs {gib(held)} on one of {topology.num_devices} workers ({parts}), which may hold "
        f"{gib(topology.capacity_bytes)} (plan.device_memory = {gib(topology.device_memory)} less "
        f"{topology.reserved_fraction:.0%} reserved)"
    )
    if not alone:
        total = topology.capacity_bytes * topology.num_devices
        text += f", and the other tables take {gib(furthest.used_bytes)} of the {gib(total)} of all workers"
    return f"{text}; {', or '.join(_remedies(name, options[name], topology))}"


def _smallest(choices: Sequence[Option]) -> Option:
    return min((o for o in choices), key=lambda option: option.block_bytes + option.asking_bytes)


def _remedies(name: str, choices: Sequence[Option], topology: Topology) -> list[str]:
    remedies = ["raise cluster.num_workers or plan.device_memory"]
    option = _smallest(choices)
    if option.where != "everywhere" and option.table.sharding != "data_parallel":
        remedies.append(f"let tables.{name}.sharding include row_wise, which spreads it over all workers")
    elif option.table.sharding == "data_parallel":
        remedies.append(f"let tables.{name}.sharding be row_wise instead of a copy on every worker")
    if option.optimizer_bytes > option.weights_bytes / 4:
        remedies.append(f"choose a tables.{name}.optimizer with less state, such as rowwise_adagrad")
    if topology.device == "cuda" and not option.host_bytes:
        if topology.host_memory == 0:
            remedies.append("state plan.host_memory, for tables that do not fit on GPUs")
        else:
            remedies.append(f"set tables.{name}.kernel = fused_uvm_caching")
    elif option.host_bytes:
        remedies.append(f"raise plan.host_memory, of which hosts have {gib(topology.host_memory)}")
    return remedies


def gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 1024**2:.1f} MiB"
