"""Downloads that go wrong on the way: nothing truncated, nothing twice, and a retry that completes them."""

import pytest

from attachments.storage import attachment_key, message_key
from tests.e2e.installation import Installation, until

SIZE = 400_000


CUTS = [(fraction, framing) for fraction in (0.1, 0.5, 0.99) for framing in ("length", "close", "chunked")]
QUICK = {CUTS[0], CUTS[4], CUTS[8]}
"""Each fraction once, and each framing."""


@pytest.mark.parametrize(
    ("fraction", "framing"), [pytest.param(*cut, marks=() if cut in QUICK else pytest.mark.soak) for cut in CUTS]
)
def test_a_download_that_is_cut_off_leaves_nothing_and_a_retry_completes_it(
    running: Installation, fraction: float, framing: str
) -> None:
    """Faults 11 and 12: cut at 10, 50 and 99 %, with and without a length; the final key never holds a part."""
    message = running.sandbox.control.add_message(attachments=[{"name": "cut.bin", "bytes": SIZE}])
    cut = {"kind": "cut", "after_fraction": fraction, "framing": framing}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=1, fault=cut)
    running.send(message)
    seen = []

    def settled() -> bool:
        seen.extend(file.stat().st_size for file in running.files(message) if file.exists())
        return running.manifest(message) is not None

    until(settled, "the manifest")
    assert set(seen) <= {SIZE}
    manifest = running.complete_manifest(message)
    assert manifest.attachments[0].sha256 == message["attachments"][0]["sha256"]
    assert len(running.calls(message, "download")) == 2


def test_one_failure_is_not_the_neighbours_and_a_retry_fetches_only_what_is_missing(running: Installation) -> None:
    """A 403 fails the run, not its neighbour; the manifest says which is missing; a later run fetches it."""
    message = running.sandbox.control.add_message(
        attachments=[{"name": "good.txt", "text": "good"}, {"name": "bad.bin", "bytes": SIZE}]
    )
    good, bad = message["attachments"]
    fault = {"kind": "status", "status": 403}
    order = running.sandbox.control.fault(
        endpoint="download", message_id=message["id"], attachment_id=bad["id"], times=None, fault=fault
    )
    run = running.run_deployment(message_id=message["id"])
    manifest = running.manifest(message)
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("Of 2 attachments 1 stored, 1 failed; 4 bytes are in the store.")
    assert manifest is not None
    assert not manifest.complete
    assert [(entry.outcome, entry.code) for entry in manifest.attachments] == [
        ("stored", None),
        ("failed", "forbidden"),
    ]
    assert len(running.calls(message, "download")) == 2, "a 403 is not tried again"

    running.sandbox.control.delete(f"faults/{order}").raise_for_status()
    running.sandbox.control.clear_requests()
    again = running.run_deployment(message_id=message["id"])
    assert again["state_type"] == "COMPLETED"
    assert [call["attachment_id"] for call in running.calls(message, "download")] == [bad["id"]]
    assert good["sha256"] in {entry.sha256 for entry in running.complete_manifest(message).attachments}


def test_a_stalled_download_ends_at_its_deadline_and_is_tried_again(running: Installation) -> None:
    """Fault 13: bytes that drip do not keep a download alive beyond its deadline."""
    running.save_blocks(f"""
        EmailgisticsAccount(
            base_url={running.sandbox.base_url!r}, api_key={running.sandbox.key!r}, download_deadline=3
        ).save("impatient", overwrite=True)
    """)
    message = running.sandbox.control.add_message(attachments=[{"name": "drip.bin", "bytes": SIZE}])
    fault = {"kind": "drip", "after_bytes": 1000, "seconds": 0.2}
    running.sandbox.control.fault(endpoint="download", message_id=message["id"], times=1, fault=fault)
    run = running.run_deployment(message_id=message["id"], account="impatient")
    assert run["state_type"] == "COMPLETED"
    assert len(running.calls(message, "download")) == 2


@pytest.mark.parametrize("status", [*(pytest.param(status, marks=pytest.mark.soak) for status in (500, 502)), 503])
def test_what_can_get_better_is_tried_again(running: Installation, status: int) -> None:
    """A 5xx of the listing and of the download: back-off, then success, in one run."""
    message = running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": "a"}])
    html = {"kind": "status", "status": status, "body": "<html>", "content_type": "text/html"}
    for endpoint in ("list", "download"):
        running.sandbox.control.fault(endpoint=endpoint, message_id=message["id"], times=1, fault=html)
    run = running.run_deployment(message_id=message["id"])
    assert run["state_type"] == "COMPLETED"
    assert [call["status"] for call in running.calls(message)] == [status, 200, status, 200]


def test_something_else_under_the_key_is_an_error_and_stays_untouched(running: Installation) -> None:
    """Fault 18: what we did not write is neither overwritten nor taken for ours."""
    message = running.sandbox.control.add_message(
        attachments=[{"name": "contract.pdf", "bytes": 1000}, {"name": "other.pdf", "bytes": 10}]
    )
    folder = running.stack.store / message_key(message["id"]) / attachment_key(message["attachments"][0]["id"])
    folder.mkdir(parents=True)
    (folder / "contract.pdf").write_bytes(b"somebody else's")
    run = running.run_deployment(message_id=message["id"])
    manifest = running.manifest(message)
    assert run["state_type"] == "FAILED"
    assert manifest is not None
    assert [(entry.outcome, entry.code) for entry in manifest.attachments] == [
        ("failed", "already-exists"),
        ("stored", None),
    ]
    assert [path.read_bytes() for path in folder.iterdir()] == [b"somebody else's"]


def test_hostile_and_colliding_names_all_arrive_each_in_its_folder(running: Installation) -> None:
    """Fault 19: traversal, devices, controls, twins and endless names; every file is there, below its own folder."""
    names = [
        "../../etc/passwd",
        "..",
        "",
        "NUL .pdf",
        "a\u202efdp.exe",
        "line\nbreak\u0085.txt",
        "e\u0301.txt",
        "\u00e9.txt",
        "same.txt",
        "same.txt",
        "SAME.TXT",
        "x" * 400 + ".tar.gz",
        "C:\\windows\\evil.bat",
        "lone \ud800 surrogate.pdf",
        "trailing. . .",
        "manifest.json",
        "日本語.pdf",
        "%2e%2e%2fescape?.txt#x",
    ]
    message = running.sandbox.control.add_message(
        attachments=[{"name": name, "text": f"content {n}"} for n, name in enumerate(names)]
    )
    running.send(message)
    manifest = running.complete_manifest(message)
    root = running.stack.store / message_key(message["id"])
    for n, entry in enumerate(manifest.attachments):
        assert entry.key is not None
        path = running.stack.store / entry.key
        assert path.read_text() == f"content {n}"
        assert path.parent == root / entry.attachment_key
        assert len(path.name.encode()) <= 255
    assert len({entry.key for entry in manifest.attachments}) == len(names)


def test_no_header_gets_round_a_filter_and_a_file_without_a_listed_name_is_judged_by_its_header(
    running: Installation,
) -> None:
    """Names of the list count. Where there is none, that of the download does, and what is excluded is not read."""
    binary = "application/octet-stream"
    message = running.sandbox.control.add_message(
        attachments=[
            {"name": "a.pdf", "content_disposition": 'attachment; filename="setup.exe"', "text": "listed"},
            {
                "name": "",
                "content_type": binary,
                "content_disposition": 'attachment; filename="b.pdf."',
                "text": "header",
            },
            {"name": "", "content_type": binary, "content_disposition": 'attachment; filename="c.exe "', "bytes": SIZE},
            {"name": "", "content_type": binary, "content_disposition": None, "text": "nameless"},
            {"name": "d.exe\u200b", "content_type": binary, "text": "excluded"},
        ]
    )
    wanted = {
        "include": [{"content_types": ["application/pdf"]}, {"names": ["attach*"]}],
        "exclude": [{"names": ["*.exe"]}],
    }
    run = running.run_deployment(message_id=message["id"], filter=wanted)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    manifest = running.complete_manifest(message)
    assert [(entry.outcome, entry.name, entry.rule) for entry in manifest.attachments] == [
        ("stored", "a.pdf", None),
        ("stored", "b.pdf.", None),
        ("filtered", "c.exe ", "exclude[0]: names *.exe"),
        ("stored", "attachment", None),
        ("filtered", "d.exe\u200b", "exclude[0]: names *.exe"),
    ]
    assert sorted(path.name for path in running.files(message)) == ["a.pdf", "attachment", "b.pdf"]
    calls = len(running.calls(message))
    again = running.run_deployment(message_id=message["id"], filter=wanted)
    assert again["state"]["message"].startswith("Nothing to do")
    assert len(running.calls(message)) == calls
