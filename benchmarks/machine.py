"""The machine of a measurement."""

import platform
import re
from contextlib import suppress
from pathlib import Path


def processor_name() -> str:
    """Return the name of the processor as Linux gives it, elsewhere its architecture."""
    with suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if named is not None:
            return named[1]
    return platform.processor() or platform.machine()
