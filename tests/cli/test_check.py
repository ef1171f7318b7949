"""`attachments check`: filters are checked before they are deployed."""

from pathlib import Path

import pytest

from attachments.cli.main import main

ENTRYPOINT = "attachments.flows.download_attachments.download_attachments"


def written(folder: Path, deployment: str) -> str:
    path = folder / "prefect.yaml"
    path.write_text(f"deployments:\n- name: invoices\n  entrypoint: {ENTRYPOINT}\n{deployment}", "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("deployment", "says"),
    [
        (
            '  parameters: {filter: {include: [{content_types: ["application/pdf, image/png"]}]}}',
            (
                "Deployment invoices: filter: include[0].content_types: 'application/pdf, image/png' is more than one "
                'content type; write a list: ["application/pdf", "image/png"].'
            ),
        ),
        (
            "  parameters: {filter: {exclude: [{max_bytes: 5}]}}",
            (
                "Deployment invoices: filter: exclude[0]: unknown max_bytes; "
                "a rule has content_types, names, min_size, max_size."
            ),
        ),
        (
            "  parameters: {filter: [pdf]}",
            "Deployment invoices: filter: a filter has include, exclude or both, each with a list of rules.",
        ),
        (
            "  parameters: {filters: {}}",
            (
                "Deployment invoices: the flow has no parameter filters, only account, conversation_id, filter, "
                "force, has_attachments, mailbox, message_id, received, store."
            ),
        ),
        (
            "  filter: {exclude: [{max_size: 5}]}",
            "Deployment invoices: filter is in the wrong place, so it is ignored. Move it below parameters.",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, deployment: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with status 1, and nothing else."""
    assert main(["check", written(tmp_path, deployment)]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", says + "\n")


@pytest.mark.parametrize(
    "parameters",
    ["{}", "{filter: {exclude: [{max_size: 500}]}, store: invoices}", "{filter: null}", '{filter: "{{ $FILTER }}"}'],
)
def test_a_file_without_a_mistake(tmp_path: Path, parameters: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What Prefect fills in on deploying cannot be checked before."""
    assert main(["check", written(tmp_path, f"  parameters: {parameters}")]) == 0
    assert capsys.readouterr().out == "No mistake found.\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory). Give the right path"),
        (b"a: [", "is not YAML (line 1, column 5: "),
        (b"\xff\xfe\xff", "is not YAML ("),
        (b"[]", "has no deployment of the flow download_attachments. Check that it is the right file."),
        (b"deployments: [7, {name: x, entrypoint: y}]", "has no deployment of the flow"),
        (b"deployments: [{entrypoint: my.py:download_attachments_report}]", "has no deployment of the flow"),
        (b"deployments: [{entrypoint: download_attachments.py:other}]", "has no deployment of the flow"),
    ],
)
def test_a_file_that_cannot_be_checked(
    tmp_path: Path, content: bytes | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said why, in one line."""
    path = tmp_path / "prefect.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_our_own_file_and_one_filter_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """The file by its path; a filter for one run as JSON."""
    assert main(["check", str(Path(__file__).parents[2] / "prefect.yaml")]) == 0
    assert main(["check", "--filter", '{"include": [{"names": ["[Draft]*"]}]}']) == 0
    capsys.readouterr()
    assert main(["check", "--filter", '{"include": [{"names": [".pdf"]}]}']) == 1
    said = 'filter: include[0].names: \'.pdf\' matches no file name but ".pdf"; for an extension write "*.pdf".\n'
    assert capsys.readouterr().err == said
    assert main(["check", "--filter", "{include: []}"]) == 1
    assert "The filter is not JSON" in capsys.readouterr().err
