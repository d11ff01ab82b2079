"""Checks that a Ray cluster answers at an address before Ray joins it: Ray itself retries for minutes and then names no cause.

One call to the head's key-value store tells all that can be wrong: nothing listens, something else does, the token, the version.
"""

import json
import os
import platform
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.authentication import authentication_utils
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import check_version_info
from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub
from ray.exceptions import AuthenticationError

from cluster.ray_cluster.token import GET_TOKEN
from trainer.errors import UserError, first_line

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 4.0
_START = "start one with `ray start --head`, correct the address, or leave it out to use this machine"


def check_cluster(address: str) -> None:
    """Check that a cluster of this version of Ray answers at `cluster.address`, and takes the token that is sent.

    Raises UserError, within ten seconds, that names what is wrong. Addresses of Ray's client (ray://) are only connected to.
    """
    if address == "local":
        return
    host, port = _host_and_port(address)
    # Ray replaces a loopback address by that of the machine's network interface.
    where = f"cluster.address = {address!r}" + (f" (that is, {host}:{port})" if host not in address else "")
    _check_port(host, port, where)
    if "://" not in address:
        _check_head(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", where)


def _host_and_port(address: str) -> tuple[str, int]:
    """Return the head's host and port. Raises UserError for "auto" where no cluster runs, and for an address of another form."""
    noted = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    try:
        bootstrap = noted.partition("://")[2] if "://" in noted else canonicalize_bootstrap_address(noted)
    except OSError:  # Ray looks up the machine's own address
        bootstrap = noted
    except ValueError:
        bootstrap = ""
    if bootstrap is None:
        raise UserError(
            f"cluster.address = {address!r}: no Ray cluster runs on this machine; start one with `ray start --head`, set "
            "cluster.address to host:port of another machine's, or leave it out to use this machine alone"
        )
    host, _, port = bootstrap.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        variable = "RAY_ADDRESS" if noted != address else "cluster.address"
        raise UserError(
            f"{variable} = {noted!r}: is no address of a Ray cluster; write host:port with the port of its head, such as "
            "10.0.0.1:6379"
        )
    return host.strip("[]"), int(port)


def _check_port(host: str, port: int, where: str) -> None:
    """Connect and leave. Raises UserError if the host is unknown or nothing listens."""
    try:
        _within(CONNECT_SECONDS, lambda: socket.create_connection((host, port), CONNECT_SECONDS)).close()
        return
    except socket.gaierror:
        cause, remedy = f"the host {host!r} is unknown", "correct the name"
    except ConnectionRefusedError:
        cause, remedy = f"nothing listens on port {port} of {host}", _START
    except TimeoutError:
        cause = f"{host} does not answer on port {port} within {CONNECT_SECONDS:g} s"
        remedy = f"check that the head runs and that no firewall is in the way; else {_START}"
    except OSError as error:
        cause, remedy = f"{host}:{port} cannot be reached ({error.strerror or error})", _START
    raise UserError(f"{where}: {cause}; {remedy}")


def _within(seconds: float, connect: Callable[[], socket.socket]) -> socket.socket:
    """Return connect(), or raise TimeoutError: looking up a name has no deadline of its own."""
    results: queue.Queue[socket.socket | OSError] = queue.Queue()

    def run() -> None:
        try:
            results.put(connect())
        except OSError as error:
            results.put(error)

    threading.Thread(target=run, daemon=True, name="cluster-address").start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(result, OSError):
        raise result
    return result


def _check_head(target: str, where: str) -> None:
    """Ask the head which Ray and Python it runs. Raises UserError if it is no head, refuses the token, or runs others."""
    request = InternalKVGetRequest(namespace=b"cluster", key=CLUSTER_METADATA_KEY)
    try:
        with init_grpc_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
            reply = InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=ANSWER_SECONDS)
    except AuthenticationError as error:
        raise UserError(f"{where}: there is no token to send ({first_line(error)}); {GET_TOKEN}") from None
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            sent = authentication_utils.is_token_auth_enabled()
            cause = (
                "the cluster refuses the token that is sent"
                if sent
                else "the cluster asks for a token, and none is sent"
            )
            raise UserError(f"{where}: {cause}; {GET_TOKEN}") from None
        raise UserError(
            f"{where}: something listens there, but it does not answer as the head of a Ray cluster ({error.code().name}); "
            "give the port of the head (6379 unless it was started with another --port), not that of the dashboard"
        ) from None
    if reply.value:
        _check_version(json.loads(reply.value), where)


def _check_version(head: dict[str, Any], where: str) -> None:
    """Compare the head's versions with ours as Ray does when it joins. Raises UserError with both."""
    try:
        check_version_info(head, "this process")
    except RuntimeError:
        here = f"Ray {ray.__version__} with Python {platform.python_version()}"
        raise UserError(
            f"{where}: the cluster runs Ray {head['ray_version']} with Python {head['python_version']}, and this is {here}; "
            "both must be the same: install those of the cluster here, or start the cluster with these"
        ) from None
