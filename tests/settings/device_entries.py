"""Entries that two sections share: what devices are like, in [plan] and in the topology of a workload."""

from collections.abc import Callable
from typing import Any

from tests.settings.entry import Entry, Settings

FIGURES = (
    "device_memory",
    "host_memory",
    "device_bandwidth",
    "host_bandwidth",
    "intra_host_bandwidth",
    "inter_host_bandwidth",
)


def of_devices_in(
    section: str, observed: Callable[[str], Any], figures_base: Settings | None = None, **options: Any
) -> tuple[Entry, ...]:
    """Return entries of the settings of devices in a section.

    Args:
        section: its name, such as "plan".
        observed: makes an observation of a property of the devices, by its name.
        figures_base: settings that figures in bytes need on both sides.
        options: of every entry, such as its world.
    """
    return (
        *(
            Entry(f"{section}.{name}", "3GiB", observed(name), 3 * 1024**3, base=figures_base or {}, **options)
            for name in FIGURES
        ),
        Entry(
            f"{section}.reserved_fraction",
            0.5,
            observed("capacity_bytes"),
            1024**3,
            base={f"{section}.device_memory": "2GiB"},
            **options,
        ),
    )
