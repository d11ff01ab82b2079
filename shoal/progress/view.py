"""Relays what the driver reports to a listener, and shows it on a console unless that is quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.driver.progress import View, plain_console
from shoal.progress.events import Event, Listener, Message, Progress, event_of


class ListeningView(View):
    """A view of a command that also passes everything on as typed events."""

    def __init__(self, quiet: bool, listener: Listener | None) -> None:
        super().__init__(plain_console(quiet=quiet))
        self._live = self._live and not quiet  # a live line would swallow what the listener prints
        self._listener = listener or (lambda event: None)
        self._relaying = False

    def print_line(self, text: str) -> None:
        """Print a line that stays."""
        with self._relayed(Message(text)):
            super().print_line(text)

    def update(self, stage: str, done: int, total: int, *parts: str) -> None:
        """Show how far a stage is."""
        with self._relayed(Progress(stage, done, total, "  ".join(parts))):
            super().update(stage, done, total, *parts)

    def on_event(self, event: dict[str, Any]) -> None:
        """Show an event of the driver or of a worker."""
        with self._relayed(event_of(event)):
            super().on_event(event)

    @contextmanager
    def _relayed(self, event: Event | None) -> Iterator[None]:
        """Pass an event on, and no other one for what the body shows of it: showing an event may print a line."""
        outermost = not self._relaying
        self._relaying = True
        try:
            if outermost and event is not None:
                self._listener(event)
            yield
        finally:
            self._relaying = not outermost
