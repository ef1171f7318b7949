"""Every form of URL that the fsspec packages take leads where they themselves would go."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from adlfs import AzureBlobFileSystem
from botocore.exceptions import MissingDependencyException
from gcsfs.core import GCSFileSystem
from s3fs import S3FileSystem

from attachments.storage import Encryption, open_store
from attachments.storage.backends.azure import AzureBackend
from attachments.storage.backends.gcs import GcsBackend
from attachments.storage.backends.s3 import S3Backend
from attachments.storage.backends.sftp import SftpBackend
from attachments.storage.errors import UnsupportedStore

POINT = "arn:aws:s3:us-east-1:123456789012:accesspoint"
OUTPOST = "arn:aws:s3-outposts:us-east-1:123456789012:outpost"
S3 = {
    "s3://bucket": ("bucket", ""),
    "s3://bucket/folder": ("bucket", "folder"),
    "s3a://bucket/a/b": ("bucket", "a/b"),
    f"s3://{POINT}/my-ap": (f"{POINT}/my-ap", ""),
    f"s3://{POINT}/my-ap/folder": (f"{POINT}/my-ap", "folder"),
    f"s3a://{POINT}:my-ap/a/b": (f"{POINT}:my-ap", "a/b"),
    "s3://arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/my-ap/a": (
        "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/my-ap",
        "a",
    ),
    "s3://arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap/folder": (
        "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
        "folder",
    ),
    f"s3://{OUTPOST}/op-01ac5d28a6a232904/accesspoint/my-ap/a/b": (
        f"{OUTPOST}/op-01ac5d28a6a232904/accesspoint/my-ap",
        "a/b",
    ),
    f"s3://{OUTPOST}:op-01ac5d28a6a232904:accesspoint:my-ap/a": (
        f"{OUTPOST}:op-01ac5d28a6a232904:accesspoint:my-ap",
        "a",
    ),
    f"s3://{OUTPOST}/op-01ac5d28a6a232904/bucket/my-bucket/a": (
        f"{OUTPOST}/op-01ac5d28a6a232904/bucket/my-bucket",
        "a",
    ),
    "s3://arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/my-olap/a": (
        "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/my-olap",
        "a",
    ),
}


@pytest.mark.parametrize("url", S3)
def test_s3_s_buckets_and_access_points(url: str) -> None:
    """The whole ARN of an access point is the bucket, slashes and all; the rest is the root."""
    bucket, root = S3[url]
    backend = S3Backend.at(url, {}, Encryption())
    assert (backend._bucket, backend._root) == (bucket, f"{root}/" if root else "")
    assert S3FileSystem(anon=True, skip_instance_cache=True).split_path(url)[:2] == (bucket, root)
    assert open_store(url).url == f"s3://{bucket}/{root}".rstrip("/")


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        (f"s3://{POINT}/my-ap/folder", "my-ap-123456789012.s3-accesspoint.us-east-1.amazonaws.com", "/folder/x"),
        (f"s3://{POINT}:my-ap", "my-ap-123456789012.s3-accesspoint.us-east-1.amazonaws.com", "/x"),
        (
            f"s3://{OUTPOST}/op-01ac5d28a6a232904/accesspoint/my-ap/a",
            "my-ap-123456789012.op-01ac5d28a6a232904.s3-outposts.us-east-1.amazonaws.com",
            "/a/x",
        ),
        ("s3://arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap/a", "mfzwi23gnjvgw.mrap.accesspoint", "/a/x"),
    ],
)
def test_boto_finds_the_access_point_of_the_bucket(url: str, host: str, path: str) -> None:
    """The host that a request would go to, and the key that it would name."""
    backend = S3Backend.at(url, {}, Encryption())
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
    try:
        signed = client.generate_presigned_url(
            "get_object", Params={"Bucket": backend._bucket, "Key": f"{backend._root}x"}
        )
    except MissingDependencyException as error:  # multi-region ones need another package for their signature
        failure = backend.failure(error)
        assert failure.kind is UnsupportedStore
        assert "awscrt" in failure.advice
        return
    assert urlsplit(signed).netloc.startswith(host)
    assert urlsplit(signed).path == path


@pytest.mark.parametrize(
    "url",
    [
        "s3://arn:aws:s3:::bucket/folder",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/my-ap",
        f"s3://{POINT}/my-ap::file:///x",
        f"s3://{POINT}",
        "s3://arn:aws:iam::123456789012:role/x",
        "s3://ARN:aws:s3:us-east-1:123456789012:accesspoint/x",
        "s3://Arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap/folder",
    ],
)
def test_other_arns_are_refused(url: str) -> None:
    """A bucket's ARN, as consoles show it, is no bucket's name."""
    with pytest.raises(UnsupportedStore, match=r"write it as s3://bucket/folder|chains"):
        open_store(url)


AZURE: dict[str, tuple[str, str, str | None]] = {
    "abfs://container/a/b": ("container", "a/b", None),
    "az://container": ("container", "", None),
    "abfss://container/a": ("container", "a", None),
    "abfs://container@account.dfs.core.windows.net/a/b": ("container", "a/b", "account"),
    "abfss://container@account.dfs.core.windows.net": ("container", "", "account"),
    "az://container@account.blob.core.windows.net/a": ("container", "a", "account"),
    "abfs://account.dfs.core.windows.net/container/a": ("container", "a", "account"),
}


@pytest.mark.parametrize("url", AZURE)
def test_azure_s_containers_and_accounts(url: str) -> None:
    """With the account in the host, or to be told as an option."""
    container, root, account = AZURE[url]
    backend = AzureBackend.at(url, {}, Encryption())
    assert (backend._container, backend._root) == (container, f"{root}/" if root else "")
    assert backend._options.get("account_name") == account
    fs = AzureBlobFileSystem(account_name="account", anon=True, skip_instance_cache=True)
    assert fs.split_path(url)[:2] == (container, root)
    assert AzureBlobFileSystem._get_kwargs_from_urls(url).get("account_name") == account


@pytest.mark.parametrize("url", ["abfs://account.blob.core.windows.net/container/a", "abfs://", "az:///"])
def test_what_adlfs_would_take_for_another_container_is_refused(url: str) -> None:
    """It knows a host without a container by `.dfs.` alone, and would take this one for a container."""
    with pytest.raises(UnsupportedStore, match="names no container"):
        open_store(url)


@pytest.mark.parametrize("url", ["adl://store.azuredatalakestore.net/a", "adl://store/a"])
def test_the_first_data_lake_is_refused(url: str) -> None:
    """Azure has retired it, and adlfs has no file system for it any more."""
    with pytest.raises(UnsupportedStore, match="Set the store's URL to one of file:, s3:, abfs:"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "bucket", "root"),
    [
        ("gs://bucket", "bucket", ""),
        ("gcs://bucket.example.com/a/b", "bucket.example.com", "a/b"),
        ("gs://bucket/a#b", "bucket", "a#b"),
    ],
)
def test_google_s_buckets(url: str, bucket: str, root: str) -> None:
    """Without a version a number sign is part of the name."""
    backend = GcsBackend.at(url, {}, Encryption())
    assert (backend._bucket, backend._root) == (bucket, f"{root}/" if root else "")
    assert GCSFileSystem(token="anon", skip_instance_cache=True).split_path(url)[:2] == (bucket, root)


@pytest.mark.parametrize(
    ("url", "expected", "root"),
    [
        ("sftp://host/a", {"host": "host", "port": 22}, "/a"),
        ("ssh://host:2222/a/b/", {"host": "host", "port": 2222}, "/a/b"),
        ("sftp://mail@host:2222/a", {"host": "host", "port": 2222, "username": "mail"}, "/a"),
        ("sftp://mail:pw@host/a", {"host": "host", "port": 22, "username": "mail", "password": "pw"}, "/a"),
        ("sftp://mail@[2001:db8::1]:2222/a", {"host": "2001:db8::1", "port": 2222, "username": "mail"}, "/a"),
        ("sftp://mail@host", {"host": "host", "port": 22, "username": "mail"}, ""),
    ],
)
def test_sftp_s_hosts_ports_and_users(url: str, expected: dict[str, Any], root: str) -> None:
    """As fsspec reads them, but for the address in brackets, which it cuts in two."""
    backend = SftpBackend.at(url, {}, Encryption())
    assert backend._options == expected
    assert backend._root == root


def test_the_port_of_any_other_server_is_shown() -> None:
    """What is shown leads there when it is pasted; a user name and a password are left out."""
    assert open_store("ftp://mail:secret@host:2121/a").url == "ftp://host:2121/a"
