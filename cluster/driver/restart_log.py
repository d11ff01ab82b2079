"""Log of the restarts of a run: restarts.jsonl in the run folder, a line per restart. No torch, no ray."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "restarts.jsonl"


def note_restart(run_dir: Path, event: dict[str, Any]) -> None:
    """Append a restart: time, cause ("failure" or "preemption"), text for people, trace. A full disk is no reason to fail."""
    line = {"time": time.time(), **{name: event[name] for name in ("cause", "text", "trace")}}
    with suppress(OSError), (run_dir / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
