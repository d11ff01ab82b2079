"""Repetition of reads and writes after errors of the storage that may pass by themselves."""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# A full disk, a missing file or denied permission stay as they are, so a second attempt would only delay the message.
_TRANSIENT = frozenset(
    {
        errno.EIO,  # network filesystems report it for a lost connection
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.ENOBUFS,
        errno.EPIPE,
        errno.EREMOTEIO,
    }
)


def may_pass(error: BaseException) -> bool:
    """Return True if the same read or write may succeed a moment later."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT


@dataclass(frozen=True)
class Retries:
    """A bound on repeated attempts, with waits that double."""

    attempts: int = 0
    """Attempts after the first one. 0: no retry."""
    wait_seconds: float = 0.0
    """The wait before the second attempt. It doubles before each further one."""
    sleep: Callable[[float], object] = time.sleep
    """Waits for a number of seconds."""

    def run(self, work: Callable[[], T], on_retry: Callable[[OSError, float], object] = lambda error, wait: None) -> T:
        """Return the result of `work`, which is repeated after an error that may pass.

        Args:
            work: Reads or writes. A second call must not depend on what the first one left behind.
            on_retry: Receives the error and the wait in seconds before each further attempt.

        Raises:
            OSError: The error of the last attempt, or the first one that does not pass by itself.
        """
        for attempt in range(self.attempts):
            try:
                return work()
            except OSError as error:
                if not may_pass(error):
                    raise
                wait = self.wait_seconds * 2.0**attempt
                on_retry(error, wait)
            self.sleep(wait)
        return work()


NO_RETRIES = Retries()
