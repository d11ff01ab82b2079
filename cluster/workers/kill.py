"""End of one process, as a Ray task on its machine."""

import psutil

from cluster.workers.mailbox import Place


def kill_process(place: Place) -> bool:
    """Kill the process of a rank. Return False if it is gone, or if its number belongs to another process now."""
    try:
        process = psutil.Process(place.pid)
        if abs(process.create_time() - place.created) > 1.0:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True
