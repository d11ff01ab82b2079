"""Joining a Ray cluster, or starting one on this machine, for the length of a command."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from cluster.config.run_config import ClusterConfig
from cluster.ray_cluster.address import check_cluster
from trainer.errors import UserError, first_line


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """A connected Ray for the body. A session that the caller already has (a test, a job) is used and left alone.

    Raises UserError if the cluster cannot be reached, or has fewer CPUs or GPUs than the workers ask for.
    """
    if ray.is_initialized():
        check_resources(config)
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about future defaults
    if config.address is None:
        # Else each launch starts a process that looks whether a cloud takes nodes away: no cloud does here.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        wanted = config.num_workers * config.cpus_per_worker
        available = os.cpu_count() or 1
        if wanted > available:
            raise UserError(
                f"cluster.num_workers = {config.num_workers} with cluster.cpus_per_worker = {config.cpus_per_worker} need "
                f"{wanted} CPUs, and this machine has {available}; lower them, or set cluster.address to a larger cluster"
            )
        # The address is always given: without it Ray would join whatever a stale file in its folder names.
        with _own_sigterm_handler():
            ray.init(
                address="local",
                num_cpus=available,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
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
    try:
        check_resources(config)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Keep the handler of the process: Ray replaces it with one that dumps a stack and exits with 134.

    The default handler is kept too, because a library must not leave another one behind.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def check_resources(config: ClusterConfig) -> None:
    """Raises UserError if the cluster could never hold the workers: Ray itself would wait for ever."""
    have = ray.cluster_resources()
    for name, each, setting in (
        ("CPU", config.cpus_per_worker, "cluster.cpus_per_worker"),
        ("GPU", config.gpus_per_worker, "cluster.gpus_per_worker"),
    ):
        wanted = config.num_workers * each
        if wanted > have.get(name, 0):
            raise UserError(
                f"cluster.num_workers = {config.num_workers} with {setting} = {each} need {wanted} {name}s, and the cluster "
                f"has {have.get(name, 0):g}; lower them or add nodes"
            )


def temporary_storage() -> str:
    """Where Ray Train may keep its own records on this machine; Shoal's checkpoints lie in the run folder."""
    return tempfile.mkdtemp(prefix="shoal-ray-train-")
