"""Arguments of the programs of other tools, and the time of batches under Lightning's trainer."""

import argparse
import json
import time
from typing import Any

SIZES = ("steps", "warm-up", "threads", "width", "length", "batch", "negatives")


def arguments(description: str | None, *flags: str) -> argparse.Namespace:
    """Read the command line of a program: the logs, the sizes of model and training, and flags of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("logs")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def timed(callback: type, warm_up: int) -> Any:
    """Return a callback of a Lightning class that notes when each batch begins.

    Args:
        callback: The class Callback of the tool's own Lightning, which has two names.
        warm_up: Batches that are not measured.
    """

    class Timing(callback):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.times.append(time.perf_counter())

        def report(self, batch_size: int) -> None:
            """Print the histories per second after the warm-up as one line of JSON."""
            measured = self.times[warm_up:]
            seconds = measured[-1] - measured[0]
            print(json.dumps({"histories_per_second": batch_size * (len(measured) - 1) / seconds}))

    return Timing()
