"""An address where no cluster can be joined is one clear line within ten seconds, whatever is wrong with it."""

import http.server
import json
import platform
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster.ray_cluster.address import check_cluster
from trainer.errors import UserError

# Sockets listen on every address of this machine: Ray takes 127.0.0.1 for the one by which other machines reach it.
DEADLINE_SECONDS = 10.0


def refusal(address: str) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        check_cluster(address)
    assert time.monotonic() - started < DEADLINE_SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert address in message
    return message


class Head(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):  # type: ignore[misc]
    """The one service of a head that is asked, with versions and a token to choose."""

    def __init__(self, metadata: dict[str, Any], token: str | None) -> None:
        self.metadata, self.token = metadata, token

    def InternalKVGet(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the service's own name
        sent = dict(context.invocation_metadata()).get("authorization")
        if self.token is not None and sent != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
        return gcs_service_pb2.InternalKVGetReply(value=json.dumps(self.metadata).encode())


@contextmanager
def head(token: str | None = None, **versions: str) -> Iterator[str]:
    metadata = {"ray_version": ray.__version__, "python_version": platform.python_version(), **versions}
    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Head(metadata, token), server)
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def web_server() -> Iterator[str]:
    with http.server.HTTPServer(("", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_head_of_the_same_versions_is_fine() -> None:
    with head() as address:
        check_cluster(address)


def test_nothing_listens() -> None:
    with silent() as address:
        pass
    message = refusal(address)
    assert f"nothing listens on port {address.partition(':')[2]} of" in message
    assert "`ray start --head`" in message


def test_an_address_that_ray_replaces_is_shown_as_both(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as address:
        pass
    port = address.partition(":")[2]
    monkeypatch.setattr("cluster.ray_cluster.address.canonicalize_bootstrap_address", lambda _: address)
    assert f"cluster.address = 'localhost:{port}' (that is, {address}): nothing listens" in refusal(f"localhost:{port}")


def test_the_host_is_unknown() -> None:
    assert "the host 'no-such-host.invalid' is unknown" in refusal("no-such-host.invalid:6379")


@pytest.mark.parametrize("other", [silent, web_server])
def test_something_else_listens(other: Any) -> None:
    with other() as address:
        assert "does not answer as the head of a Ray cluster" in refusal(address)


def test_no_token_is_sent_to_a_cluster_that_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray switches a process to tokens once it has started a cluster there, as other tests do.
    monkeypatch.setattr("cluster.ray_cluster.address.authentication_utils.is_token_auth_enabled", lambda: False)
    with head(token="secret") as address:
        message = refusal(address)
    assert "asks for a token, and none is sent" in message
    assert "RAY_AUTH_TOKEN_PATH" in message


def test_another_version_of_ray() -> None:
    with head(ray_version="2.9.0") as address:
        message = refusal(address)
    assert "the cluster runs Ray 2.9.0" in message
    assert f"this is Ray {ray.__version__}" in message


@pytest.mark.parametrize("address", ["here", "10.0.0.1", "10.0.0.1:port", "10.0.0.1:99999", ":6379"])
def test_an_address_of_another_form(address: str) -> None:
    assert "host:port" in refusal(address)


def test_auto_without_a_cluster_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.ray_cluster.address.canonicalize_bootstrap_address", lambda address: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no Ray cluster runs on this machine" in refusal("auto")
