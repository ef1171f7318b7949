"""What leads from a parameter to a credential: each was judged, and a new one has to be.

docs/backfill.md says it of `ids_url` and `ids_block`, and tests/domain/test_message_ids_source.py tries these.
"""

import inspect
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.flows.backfill_attachments import backfill_attachments
from attachments.flows.doctor import doctor
from attachments.flows.download_attachments import download_attachments
from attachments.flows.purge_attachments import purge_attachments
from attachments.flows.reconcile_attachments import reconcile_attachments
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.child_runs import DownloadDeployment, MessageRef
from attachments.runs.errors import NotConfigured

NAMES = {
    "account": "a block emailgistics-account, by its name alone",
    "store": "a block attachment-store, by its name alone",
    "deployment": "a deployment of download-attachments, by its name alone",
    "ids_block": "a block attachment-store, whose options are for ids_url in its own folder",
    "ids_url": "a file in the folder of ids_block, or in one that the worker's environment allows",
}
"""Parameters that lead to a credential, and how far."""
PLAIN = {
    "download-attachments": "message_id mailbox received conversation_id has_attachments filter force",
    "backfill-attachments": "message_ids mailbox start end force",
    "reconcile-attachments": "mailboxes overlap_hours settling_minutes first_days",
    "purge-attachments": "older_than_days dry_run forget hold most at_once per_second",
    "doctor": "",
}
"""All others: they are compared, counted or sent to the one account, and name no file and no host."""
FIELDS = {
    EmailgisticsAccount: (
        "base_url api_key limit_name backlog_limit_name list_timeout download_timeout download_deadline"
    ),
    AttachmentStore: "url options s3_encryption kms_key azure_encryption_scope age_recipients allow_plaintext",
}
"""The fields of our blocks. Who may write a block may read it; tests/storage says where its options may lead."""
ODD = [
    "emailgistics-account/default",
    "../../../emailgistics-account/block_documents/name/default",
    "%2e%2e/default",
    "default?include_secrets=true",
    "default#",
    "..",
    ".",
    "a\\b",
    "a\r\nHost: x",
]


@pytest.mark.parametrize(
    "flow",
    [backfill_attachments, doctor, download_attachments, purge_attachments, reconcile_attachments],
    ids=lambda flow: flow.name,
)
def test_every_parameter_was_judged(flow: Any) -> None:
    """The author of a new one says what it may lead to."""
    judged = {*NAMES, *PLAIN[flow.name].split()}
    assert set(inspect.signature(flow.fn).parameters) <= judged


def test_every_field_of_a_block_was_judged() -> None:
    """As the parameters."""
    for kind, fields in FIELDS.items():
        own = set(kind.model_fields) - set(kind.__base__.model_fields if kind.__base__ else ())
        assert {name for name in own if not name.startswith("_")} == set(fields.split())


def test_mail_and_events_choose_no_credential() -> None:
    """Neither a webhook, nor an event, nor a backfill gives a run more than what is known of a message."""
    message = set(PLAIN["download-attachments"].split()) - {"filter", "force"}
    from attachments.receiver import flow_runs

    source = inspect.getsource(flow_runs._parameters)
    assert not any(f'"{name}"' in source for name in NAMES)
    assert set(MessageRef.model_fields) <= message
    declared = yaml.safe_load((Path(__file__).parents[1] / "prefect.yaml").read_text())["deployments"]
    triggers = [trigger for deployment in declared for trigger in deployment.get("triggers", ())]
    assert triggers
    for trigger in triggers:
        assert set(trigger["parameters"]) <= message
    assert all(not deployment.get("pull") and not deployment.get("pull_steps") for deployment in declared)


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """The paths that a Prefect was asked for which knows nothing."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, 0.01))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: address, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield paths
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ODD)
def test_a_name_names_one_kind_of_thing(name: str, asked: list[str]) -> None:
    """Whatever stands in it, it is the name of a block of that type, or of a deployment of that flow."""
    prefixes = {
        load_store: "/api/block_types/slug/attachment-store/block_documents/",
        load_account: "/api/block_types/slug/emailgistics-account/block_documents/",
        DownloadDeployment.load: "/api/deployments/name/",
    }
    for load, prefix in prefixes.items():
        del asked[:]
        with pytest.raises(NotConfigured):
            load(name)
        for path in asked:
            assert path.startswith(prefix)
            last = path.partition("?")[0].rpartition("/")[2]
            assert unquote(last) == name
