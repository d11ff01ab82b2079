"""Log of a rank in the run folder: all that its process writes, so that it outlasts the node of the rank. No torch.

Ray keeps the output of a worker on the worker's own node, and it is gone with the node. Here the file descriptors of stdout and
stderr lead to logs/rank-N.log, so that messages of native libraries and the traces of a crash are in it too.
"""

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime

from cluster.workers.mailbox import Place
from trainer.storage.objects.paths import path_of
from trainer.storage.objects.spool import Spool


class RankLog:
    """The log of one rank. Without a folder, lines go to the output that Ray keeps."""

    def __init__(self, rank: int, place: Place) -> None:
        self._name = f"rank {rank} on {place.host}"

    def write(self, text: str) -> None:
        """Write a line with time, rank and host."""
        # Not by print, which Ray Train replaces by a logger of its own.
        os.write(1, f"{datetime.now():%Y-%m-%d %H:%M:%S} {self._name}: {text}\n".encode())


@contextmanager
def rank_log(folder: str | None, rank: int, place: Place) -> Iterator[RankLog]:
    """Yield the log of a rank, and send the output of this process there for the body.

    Args:
        folder: where the logs are; None leaves the output where it is. A folder that cannot be written does the same.
        rank: number of this rank.
        place: the process of this rank.
    """
    log = RankLog(rank, place)
    spool = None if folder is None else Spool(path_of(folder), f"rank-{rank}", keeps=True)
    file = None if spool is None else _opened(spool, f"rank-{rank}.log")
    if spool is None or file is None:
        yield log
        return
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in kept:
            os.dup2(file, number)
        faulthandler.enable(file)
        log.write(f"worker starts as process {place.pid} on node {place.node}")
        yield log
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        faulthandler.enable(kept[1][1])
        for number, copy in kept:
            os.dup2(copy, number)
        os.close(file)
        with suppress(OSError):
            spool.close()


def _opened(spool: Spool, name: str) -> int | None:
    """Return a descriptor of the file, to which each write appends; None if the folder cannot be written."""
    try:
        path = spool.continued(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return None
