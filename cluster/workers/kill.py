"""Processes of ranks on their own machine: whether one is alive, and its end."""

import psutil

from cluster.workers.mailbox import Place


def kill_process(place: Place) -> bool:
    """Kill the process of a rank. Return False if it is gone, or if its number belongs to another process now."""
    process = _process_of(place)
    if process is None:
        return False
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def is_alive(place: Place) -> bool:
    """Return whether the process of a rank still runs. One that has ended and is not collected yet does not."""
    process = _process_of(place)
    try:
        return process is not None and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _process_of(place: Place) -> psutil.Process | None:
    """Return the process, or None if it is gone or its number belongs to another one now."""
    try:
        process = psutil.Process(place.pid)
        return process if abs(process.create_time() - place.created) <= 1.0 else None
    except psutil.NoSuchProcess:
        return None
