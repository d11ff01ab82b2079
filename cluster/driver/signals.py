"""Signals: Ctrl-C and SIGTERM during training ask for a checkpoint and an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.driver.progress import View


@contextmanager
def stop_on_signal(view: View) -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set within the body; a second signal ends the command at once.

    Outside the main thread no handler can be installed: the event is then never set by a signal.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            earlier = before[signal.Signals(number)]
            if callable(earlier):
                earlier(number, frame)
            raise KeyboardInterrupt
        stop.set()
        view.print_line("stopping after this step, with a checkpoint (press Ctrl-C again to end at once)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
