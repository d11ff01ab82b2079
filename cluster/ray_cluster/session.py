"""Ray session: joins a Ray cluster, or starts one on this machine, for the duration of a command."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import ray
from ray._private import worker
from ray.exceptions import RayError

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.address import check_cluster
from cluster.ray_cluster.reaper import descendants, reaping, started_since
from cluster.ray_cluster.room import NodeRoom, evaluation_problem, resource_problem
from trainer.errors import UserError, first_line


class RaySession:
    """A Ray session that is opened when it is first needed, and closed with the body.

    on_phase: called with a line of text before Ray is started or joined, which takes seconds.
    """

    def __init__(self, config: ClusterConfig, on_phase: Callable[[str], None] = lambda text: None) -> None:
        self._config = config
        self._on_phase = on_phase
        self._stack = ExitStack()
        self._connected = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Join Ray unless that is done. Raises UserError as ray_session does."""
        if self._connected:
            return
        if not ray.is_initialized():
            address = self._config.address
            self._on_phase("Ray: starting on this machine" if address is None else f"Ray: joining {address}")
        self._stack.enter_context(ray_session(self._config, self._on_phase))
        self._connected = True


@contextmanager
def ray_session(config: ClusterConfig, on_phase: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Keep Ray connected for the body. A session that the caller already has (a test, a job) is used and left alone.

    Args:
        config: the cluster.
        on_phase: called with a line of text if Ray must be started a second time.

    Raises:
        UserError: the cluster cannot be reached or started, or has fewer CPUs or GPUs than the workers ask for.
    """
    if ray.is_initialized():
        check_resources(config)
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about future defaults
    _keep_off_stdout()
    earlier = descendants()
    if config.address is None:
        # Otherwise each launch starts a process that watches for preemption by a cloud, which cannot happen here.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        wanted = config.num_workers * config.cpus_per_worker
        available = os.cpu_count() or 1
        if wanted > available:
            raise UserError(
                f"cluster.num_workers = {config.num_workers} with cluster.cpus_per_worker = {config.cpus_per_worker} need "
                f"{wanted} CPUs, and this machine has {available}; lower them, or set cluster.address to a larger cluster"
            )
        with _own_sigterm_handler():
            _start_here(available, on_phase)
    else:
        check_cluster(config.address)
        try:
            with _own_sigterm_handler():
                ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise UserError(
                f"cluster.address = {config.address!r}: the cluster answers, but cannot be joined ({first_line(error)}). A driver "
                "needs a node of the cluster on its own machine: run the command there, or join this machine by "
                "`ray start --address=HOST:PORT`; `shoal doctor` checks this machine"
            ) from None
    with ExitStack() as stack:
        if config.address is None:
            stack.enter_context(reaping(started_since(earlier)))
        stack.callback(ray.shutdown)
        check_resources(config)
        yield


def _keep_off_stdout() -> None:
    """Send Ray's messages about its own processes to its log.

    Ray prints them on stdout, where --json has its answer, even with log_to_driver=False (Ray 2.60). A worker that died is named
    by Shoal itself.
    """

    def log(data: dict[str, Any], *_: Any, **__: Any) -> None:
        logging.getLogger("ray").info("\n".join(map(str, data.get("lines", ()))))

    worker.print_to_stdstream = log


def _start_here(num_cpus: int, on_phase: Callable[[str], None]) -> None:
    """Start a cluster on this machine, at the second attempt if the first fails.

    Ray chooses free ports and binds them later. A cluster that starts at the same moment can take one in between.
    """
    for is_last in (False, True):
        try:
            ray.init(
                address="local",  # without an address Ray would join the cluster that a stale file in its folder names
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except Exception as error:
            if not _is_failed_process(error):
                raise
            ray.shutdown()
            if is_last:
                raise UserError(
                    f"Ray did not start on this machine in two attempts ({first_line(error)}). Its logs are in the folder for "
                    "temporary files, under ray/session_latest/logs; `shoal doctor` checks this machine, and cluster.address "
                    "names a cluster that runs already"
                ) from error
            on_phase("Ray: did not start, maybe because another cluster took its port; starting again")
        else:
            return


def _is_failed_process(error: Exception) -> bool:
    """Return whether one of Ray's processes failed to start. Wrong arguments and refusals of the disk are other errors."""
    # Of a process that does not answer, Ray raises an Exception of no particular type.
    return type(error) is Exception or isinstance(error, RuntimeError | TimeoutError | ConnectionError | RayError)


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep the SIGTERM handler of the process: Ray replaces it by one that dumps a stack and exits with 134.

    The default handler is kept too, because a library must not leave another one behind.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_resources(config: ClusterConfig) -> None:
    """Raise UserError if the cluster could never hold the workers: Ray itself would wait forever."""
    if problem := resource_problem(config, nodes_here()):
        raise UserError(f"the cluster is too small: {problem}")


def check_both_groups(config: ClusterConfig) -> None:
    """Raise UserError if the cluster could never hold the workers of a training and those of its concurrent evaluation at once."""
    if problem := evaluation_problem(config, nodes_here()):
        raise UserError(f"the cluster is too small: {problem}")


def nodes_here() -> list[NodeRoom]:
    """Return the nodes of the cluster that is connected and that are alive."""
    return [
        NodeRoom(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def temporary_storage() -> str:
    """Make a folder for Ray Train's own records on this machine; Shoal's checkpoints are in the run folder."""
    return tempfile.mkdtemp(prefix="shoal-ray-train-")
