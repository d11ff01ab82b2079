"""Training steps with examples that the ranks exchange.

Three things run at the same time: one thread reads and packs the next round, one thread builds batches of the present round, and
the consumer's thread trains. Only the consumer's thread calls collectives, always at the same step of every rank. So a rank that
stops early leaves no other rank waiting.
"""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch

from trainer.data.stream.exchange.agreement import raise_on_all
from trainer.data.stream.exchange.lengths import ExampleLengths
from trainer.data.stream.exchange.rounds import Arriving, Outgoing, Received, Stretch
from trainer.data.stream.prefetch import Prefetch

T = TypeVar("T")


class ExchangedSteps(Generic[T]):
    """Iterator of the steps of one rank. Every `next` of all ranks is collective.

    Use it as a context manager: leaving it stops the threads, also when the consumer stops early.
    """

    def __init__(
        self,
        lengths: ExampleLengths,
        stretches: Iterator[Stretch],
        prepare: Callable[[Stretch, np.ndarray], Outgoing],
        build: Callable[[Received], Iterator[T]],
    ) -> None:
        """Start to read.

        Args:
            lengths: Lengths of examples, with the ranks.
            stretches: The rounds.
            prepare: Returns the part of this rank in a round. It is called in one thread, in the order of rounds.
            build: Yields the steps of a round from the examples that arrived. It is called in another thread.
        """
        self._lengths = lengths
        self._stretches = stretches
        self._prepare = prepare
        self._build = build
        self._reading = ThreadPoolExecutor(1, "exchange")
        self._next_stretch = self._reading.submit(next, self._stretches, None)
        self._prepared: Future[Outgoing] | None = None
        self._received: queue.Queue[Received | None] = queue.Queue()
        self._steps = Prefetch(self._built())

    def __enter__(self) -> "ExchangedSteps[T]":
        return self

    def __exit__(self, *exception: object) -> None:
        self._received.put(None)
        self._steps.__exit__(*exception)
        self._reading.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[T]:
        steps = iter(self._steps)
        self._start_next_round()
        arriving = self._exchange()
        while arriving is not None:
            following = None
            for number in range(arriving.num_steps):
                if number == arriving.num_steps // 2:  # early enough to build batches before they are needed
                    following = self._exchange()
                yield next(steps)
            arriving = following if arriving.num_steps else self._exchange()

    def _built(self) -> Iterator[T]:
        while (received := self._received.get()) is not None:
            yield from self._build(received)

    def _start_next_round(self) -> None:
        """Ask for the lengths of the next stretch, and start to read its part. Collective."""
        stretch = self._next_stretch.result()
        if stretch is None:
            self._prepared = None
            return
        lengths = self._lengths.at(stretch.places.group, stretch.places.place)
        self._prepared = self._reading.submit(self._prepare, stretch, lengths)
        self._next_stretch = self._reading.submit(next, self._stretches, None)

    def _exchange(self) -> Arriving | None:
        """Exchange the examples of the next round, and start the round after it. Collective. Returns None after the last.

        Raises the error of reading on all ranks.
        """
        if self._prepared is None:
            return None
        world = self._lengths.world
        outgoing: Outgoing | None = None
        failure: Exception | None = None
        try:
            outgoing = self._prepared.result()
        except Exception as error:  # noqa: BLE001 - an error of one rank is raised on all, so that no rank waits forever
            failure = error
        sent = [-1] * world.world_size if outgoing is None else outgoing.sent
        received = world.exchange_ints(sent)
        if min(received) < 0:
            raise_on_all(world, failure)
        assert outgoing is not None
        payload = world.exchange(torch.from_numpy(outgoing.payload), sent, received).numpy()
        self._received.put(Received(outgoing.arriving, payload))
        self._start_next_round()
        return outgoing.arriving
