"""The filter: which attachments are wanted, and what is said when a rule makes no sense."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attachments.domain.selection import (
    ALIASES,
    TYPES,
    UNINFORMATIVE_TYPES,
    Decision,
    Filter,
    Rule,
    decide,
    describe_errors,
    known_type,
)


@dataclass(frozen=True)
class Attachment:
    name: str | None = "invoice.pdf"
    content_type: str | None = "application/pdf"
    size: int | None = 50_000


def matches(attachment: Attachment, **rule: Any) -> bool:
    return Rule.model_validate(rule).matches(attachment)


def test_without_a_filter_everything_is_wanted() -> None:
    """No filter, an empty one, and one with empty lists are the same."""
    for none in (None, Filter(), Filter.model_validate({"include": [], "exclude": []})):
        assert decide(none, Attachment()) == Decision(wanted=True, rule=None)


@pytest.mark.parametrize(
    ("content_type", "pattern"),
    [
        ("application/pdf", "application/pdf"),
        ("Application/PDF", "application/pdf"),
        ("application/pdf", "APPLICATION/*"),
        ("application/pdf; name=x.pdf", "application/pdf"),
        (" text/plain ;charset=utf-8", "text/*"),
        ('"application/pdf"', "application/pdf"),
        ("'application/pdf; name=x.pdf'", "application/pdf"),
        (' "application/x-pdf" ', "application/pdf"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/pdf", "*"),
        ("image/png", "image*"),
        ("application/vnd.ms-excel", "*excel"),
        ("text/plain", 'text/plain; charset="utf-8"; format=flowed'),
    ],
)
def test_content_types_are_compared_without_case_and_parameters(content_type: str, pattern: str) -> None:
    """On either side, as RFC 9110 section 8.3.1 has it."""
    assert matches(Attachment(content_type=content_type), content_types=[pattern])


@pytest.mark.parametrize("content_type", ["application/pdfx", "x/application/pdf", "image/pdf", "application/"])
def test_a_content_type_matches_as_a_whole(content_type: str) -> None:
    """A pattern is no search."""
    assert not matches(Attachment(content_type=content_type), content_types=["application/pdf"])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/octet-stream",
        "Application/Octet-Stream; x=y",
        "",
        " ",
        None,
        "binary/octet-stream",
        "application/force-download",
        "application/x-download",
        "application/download",
        "application/unknown",
        "Application/X-Download; name=a",
        "application/x-octetstream",
        '"application/octet-stream"',
        "*/*",
        "application/*",
        "pdf",
        "PDF",
        "unknown",
    ],
)
@pytest.mark.parametrize(
    ("name", "judged"),
    [
        ("a.pdf", "application/pdf"),
        ("A.PDF", "application/pdf"),
        ("a.b.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.xlsm", "application/vnd.ms-excel.sheet.macroenabled.12"),
        ("a.eml", "message/rfc822"),
        ("a.msg", "application/vnd.ms-outlook"),
        ("a.heic", "image/heic"),
        ("a.webp", "image/webp"),
        ("a.jfif", "image/jpeg"),
        ("a.jpg", "image/jpeg"),
        ("a.tif", "image/tiff"),
        ("a.csv", "text/csv"),
        ("a.zip", "application/zip"),
        ("a.7z", "application/x-7z-compressed"),
        ("a.tar.gz", "application/gzip"),
        ("a.p7m", "application/pkcs7-mime"),
        ("a.ics", "text/calendar"),
        ("a.xml", "application/xml"),
        ("a.json", "application/json"),
        ("a.pdf ", "application/pdf"),
        ("a.pdf.", "application/pdf"),
        ("a.pdf\u200b", "application/pdf"),
        ("a.p\u200bdf", "application/pdf"),
        ("data:,x.pdf", "application/pdf"),
    ],
)
def test_a_type_that_says_nothing_is_judged_by_the_name(content_type: str | None, name: str, judged: str) -> None:
    """Exchange lists many an office file as application/octet-stream."""
    assert matches(Attachment(name, content_type), content_types=[judged])
    assert not matches(Attachment(name, content_type), content_types=["application/octet-stream"])


@pytest.mark.parametrize("name", ["a", "a.", "a.nonsense", "pdf", "", None, ".pdf.x"])
@pytest.mark.parametrize("content_type", ["", "application/force-download"])
def test_an_unknown_name_leaves_the_type_that_says_nothing(name: str | None, content_type: str) -> None:
    """It can still be matched as what it is, and as it is stated."""
    assert matches(Attachment(name, content_type), content_types=["application/octet-stream"])
    assert not content_type or matches(Attachment(name, content_type), content_types=[content_type])


@pytest.mark.parametrize(
    ("alias", "registered"),
    [
        ("application/x-pdf", "application/pdf"),
        ("Application/X-PDF; name=x", "application/pdf"),
        ("image/jpg", "image/jpeg"),
        ("image/pjpeg", "image/jpeg"),
        ("application/x-zip-compressed", "application/zip"),
        ("application/x-pkcs7-signature", "application/pkcs7-signature"),
        ("application/x-pkcs7-mime; smime-type=signed-data", "application/pkcs7-mime"),
        ("text/rtf", "application/rtf"),
        ("application/csv", "text/csv"),
        ("image/x-ms-bmp", "image/bmp"),
        ("audio/x-wav", "audio/wav"),
        ("application/x-msword", "application/msword"),
        ("application/x-msexcel", "application/vnd.ms-excel"),
    ],
)
def test_another_name_of_a_type_is_that_type(alias: str, registered: str) -> None:
    """In the list of attachments and in the filter; and a pattern still matches the type as it is stated."""
    prefix = alias.partition(";")[0][:-2] + "*"
    for pattern in (alias, registered, prefix):
        assert matches(Attachment(content_type=alias), content_types=[pattern])
    assert matches(Attachment(content_type=registered), content_types=[alias])
    assert not matches(Attachment(content_type="text/html"), content_types=[alias, registered])


def test_a_type_that_says_something_is_believed() -> None:
    """A name does not overrule it."""
    assert not matches(Attachment("a.pdf", "image/png"), content_types=["application/pdf"])


def test_types_do_not_depend_on_the_machine() -> None:
    """Neither /etc/mime.types nor what another library has registered before us changes a decision."""
    code = """
import mimetypes
mimetypes.add_type("text/plain", ".pdf")
mimetypes.add_type("text/x-nonsense", ".nonsense")
from tests.domain.test_selection import Attachment, matches
print(matches(Attachment("a.pdf", ""), content_types=["application/pdf"]))
print(matches(Attachment("a.nonsense", ""), content_types=["text/*"]))
"""
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("Invoice.PDF", "*.pdf"),
        ("invoice.pdf", "INVOICE-*"[:-2] + ".*"),
        ("RÉSUMÉ.doc", "re\u0301sume\u0301.*"),
        ("re\u0301sume\u0301.doc", "résumé.*"),
        ("STRASSE.txt", "straße.txt"),
        ("a\nb.txt", "a?b.txt"),
        ("x[1].pdf", "x[1].pdf"),
        ("x[1].pdf", "x[?].pdf"),
        ("x(1).pdf", "x(1).pdf"),
        ("{A-1}.^$+|.pdf", "{a-1}.^$+|.pdf"),
        ("[Draft] contract.pdf", "[Draft]*"),
        ("[!a].pdf", "[!a]*"),
        ("x].pdf", "*].pdf"),
        ("日本語.pdf", "日本*"),
        (None, "*"),
    ],
)
def test_names_are_compared_without_case_and_spelling(name: str | None, pattern: str) -> None:
    """What readers take for the same name is the same name."""
    assert matches(Attachment(name), names=[pattern])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("accounts.pdf", "[Draft]*"), ("d.pdf", "[a-z].pdf"), ("x1.pdf", "x[1].pdf"), ("b.pdf", "[!a].pdf")],
)
def test_brackets_stand_for_themselves(name: str, pattern: str) -> None:
    """File names have brackets. Only * and ? are wildcards."""
    assert not matches(Attachment(name), names=[pattern])


@pytest.mark.parametrize(
    "name",
    [
        "setup.exe.",
        "setup.exe ",
        "setup.exe. . .",
        "setup.exe\u200b",
        "set\u00adup.exe",
        "setup.\u202eexe",
        "setup.exe\ufe0f",
        "setup.\U000e0100exe\u180b",
        "setup.exe\n",
        "C:\\tools\\setup.exe",
        "../setup.exe",
        "tools/../setup.exe",
        "SETUP.EXE\ufeff.",
        "e\u0301" * 5000 + ".exe\u200b",
    ],
)
def test_a_name_is_compared_as_it_is_stored_too(name: str) -> None:
    """What ends up as an .exe is one, whatever its sender has added; and what ends up as a PDF is one."""
    assert matches(Attachment(name), names=["*.exe"])
    assert decide(Filter.model_validate({"exclude": [{"names": ["*.exe"]}]}), Attachment(name)).wanted is False
    assert matches(Attachment(name.replace("exe", "pdf").replace("EXE", "PDF"), ""), names=["*.pdf"])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("Offer 1/2.pdf", "offer 1?2.pdf"),
        ("Offer 1/2.pdf", "Offer 1_2.pdf"),
        ("a\u202efdp.exe", "*\u202e*"),
        ("", "attach*"),
    ],
)
def test_a_name_is_compared_as_it_was_sent_too(name: str, pattern: str) -> None:
    """Either is enough."""
    assert matches(Attachment(name), names=[pattern])


@pytest.mark.parametrize("name", ["a.❤", "a.❤\ufe0f", "a.❤\ufe0e"])
@pytest.mark.parametrize("pattern", ["*.❤", "*.❤\ufe0f"])
def test_the_variant_of_a_character_makes_no_difference(name: str, pattern: str) -> None:
    """Nobody sees in a pattern which of them it asks for."""
    assert matches(Attachment(name), names=[pattern])


@pytest.mark.parametrize("name", ["invoice.pdf.exe", "xinvoice", None])
def test_a_name_matches_as_a_whole(name: str | None) -> None:
    """A pattern is no search."""
    assert not matches(Attachment(name), names=["*.pdf", "invoice"])


@pytest.mark.parametrize(("size", "expected"), [(9, False), (10, True), (20, True), (21, False), (None, False)])
def test_sizes_are_inclusive_bounds(size: int | None, expected: bool) -> None:
    """And a size that is not listed is within none."""
    assert matches(Attachment(size=size), min_size=10, max_size=20) is expected
    assert matches(Attachment(size=size), min_size=10) is (expected or size == 21)
    assert matches(Attachment(size=size), max_size=20) is (expected or size == 9)


def test_a_rule_matches_when_all_its_conditions_do() -> None:
    """Any of a list, but all of the conditions."""
    rule = {"content_types": ["image/*", "application/pdf"], "names": ["inv*", "bill*"], "max_size": 100}
    assert matches(Attachment("bill.pdf", "application/pdf", 100), **rule)
    assert not matches(Attachment("bill.pdf", "application/pdf", 101), **rule)
    assert not matches(Attachment("bill.pdf", "text/plain", 100), **rule)
    assert not matches(Attachment("note.pdf", "application/pdf", 100), **rule)


FILTER = Filter.model_validate(
    {
        "include": [{"content_types": ["application/pdf"]}, {"names": ["*.xlsx", "*.csv"]}],
        "exclude": [
            {"content_types": ["image/*", "video/*"], "max_size": 20000},
            {"min_size": 1000000},
            {"names": ["secret*"], "min_size": 1, "max_size": 2},
        ],
    }
)


@pytest.mark.parametrize(
    ("attachment", "rule"),
    [
        (Attachment(), None),
        (Attachment("a.csv", "text/plain"), None),
        (Attachment("a.txt", "text/plain"), "include: no rule matches"),
        (Attachment("a.pdf", size=1_000_000), "exclude[1]: min_size 1000000"),
        (Attachment("a.png", "image/png", 5), "exclude[0]: content_types image/* or video/*, max_size 20000"),
        (Attachment("secret.pdf", size=2), "exclude[2]: names secret*, min_size 1, max_size 2"),
    ],
)
def test_the_rule_that_dropped_it_is_told(attachment: Attachment, rule: str | None) -> None:
    """In the words of the configuration, so that nothing of the attachment shows."""
    assert decide(FILTER, attachment) == Decision(wanted=rule is None, rule=rule)
    assert FILTER.decide(attachment) == decide(FILTER, attachment)


def test_no_name_makes_a_pattern_slow() -> None:
    """Names come from outside; many stars meet the worst of them in no time."""
    attachment = Attachment("a" * 100_000)
    started = time.process_time()
    assert not matches(attachment, names=["*a" * 20 + "b"])
    assert time.process_time() - started < 5
    assert matches(Attachment("a" + "\u0301\u0316" * 100_000 + ".exe"), names=["á*.exe"])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"include": [{}]}, "a rule has no conditions; give it content_types, names, min_size or max_size"),
        ({"include": [{"names": [], "content_types": None}]}, "a rule has no conditions"),
        ({"include": [{"max_bytes": 5}]}, "unknown max_bytes; a rule has content_types, names, min_size, max_size"),
        ({"includes": []}, "unknown includes; a filter has include, exclude"),
        ({"exclude": [{"min_size": 3, "max_size": 2}]}, "min_size 3 is larger than max_size 2"),
        ({"exclude": [{"max_size": -1}]}, "greater than or equal to 0"),
        ({"exclude": [{"min_size": -1}]}, "greater than or equal to 0"),
        ({"exclude": [{"max_size": "20 kB"}]}, r"exclude\[0\].max_size"),
        ({"exclude": [{"names": "*.png"}]}, r'write a list, even of one: \["\*.png"\]'),
        ({"exclude": [{"names": [" "]}]}, "one of the patterns is empty; remove it"),
        ({"exclude": [{"names": [5]}]}, r"exclude\[0\].names\[0\]"),
        ({"exclude": [{"max_size": True}]}, "write a number of bytes"),
        ({"exclude": [{"names": ["{" + "," * 500_000]}]}, "a pattern has 500001 characters, more than any name"),
        *(
            ({"exclude": [{"content_types": [text]}]}, r'not a content type; write one such as .* names \["\*.pdf"\]')
            for text in ("pdf", ".pdf", "*.pdf", " *.PDF ".lower())
        ),
        ({"include": [{"content_types": ["pdf, docx"]}]}, r'names \["\*.pdf", "\*.docx"\]'),
        *(
            (
                {"include": [{"content_types": [f"application/pdf{between}image/png"]}]},
                r'more than one content type; write a list: \["application/pdf", "image/png"\]',
            )
            for between in (", ", ",", "|", " | ", ";", "; ", " ", "\n", ";q=0.9,", "; q=0.9, ", ";q=0.9|", ";q=0.9;")
        ),
        ({"include": [{"content_types": "application/pdf, image/png"}]}, r'list.*: \["application/pdf", "image/png"\]'),
        *(
            (
                {"include": [{"content_types": [text]}]},
                r"not a content type; write one such as application/pdf or image/\*$",
            )
            for text in (
                "image/[pj]*",
                "image/{png,jpeg}",
                "image/(png|jpeg)",
                "image/png|jpeg",
                "image/.*",
                "application/ pdf",
                "application/pdf/",
                "/pdf",
                "image/",
                "^image/png$",
                "bild/größe",
                "application\\pdf",
                "https://example.com/a.pdf",
            )
        ),
        *(
            ({"exclude": [{"names": [text]}]}, "match the name alone, without a folder")
            for text in ("invoices/*.pdf", "**/*.pdf", "C:\\*.pdf", ".*\\.pdf")
        ),
        *(
            ({"exclude": [{"names": [text]}]}, r'more than one pattern; .* such as \["\*.pdf", "\*.docx"\]')
            for text in (
                "*.pdf, *.docx",
                "*.pdf;*.docx",
                "*.pdf | *.png",
                "*.{pdf,docx}",
                "*.pdf *.doc",
                "*.pdf\n*.doc",
                "*.pdf\r\ninvoice*",
                "invoice.pdf, order.pdf",
                "invoice.pdf|order.pdf",
                "invoice*.pdf; order.PDF; *.zip",
            )
        ),
        *(
            ({"exclude": [{"names": [text]}]}, r'matches no file name but "\.?pdf"; for an extension write "\*\.pdf"')
            for text in ("pdf", ".pdf")
        ),
        ({"exclude": [{"names": ["x[[]1].pdf"]}]}, r"brackets stand for themselves, so write \[ in place of \[\[\]"),
        ({"exclude": [{"names": ["*.pdf\u200b"]}]}, r"invisible character \(U\+200B\)"),
        ({"exclude": [{"content_types": ["\ufeffapplication/pdf"]}]}, r"invisible character \(U\+FEFF\)"),
        ({"exclude": {"names": ["x"]}}, "exclude"),
        ({"exclude": ["x"]}, r"exclude\[0\]"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(bad: dict[str, Any], says: str) -> None:
    """Before anything runs, with what to change."""
    with pytest.raises(ValidationError) as raised:
        Filter.model_validate(bad)
    told = describe_errors(raised.value)
    assert re.search(says, told), told
    assert "Value error" not in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "pattern"), [("invoice.pdf, order.pdf", "invoice.pdf? order.pdf"), ("x.pdf y.doc", "*.pdf?*.doc")]
)
def test_a_single_name_that_looks_like_a_list_can_be_written(name: str, pattern: str) -> None:
    """As the message says that refuses it."""
    assert matches(Attachment(name), names=[pattern])


@pytest.mark.parametrize(
    "name",
    [
        "invoice.pdf order.pdf",
        "*.pdf copy",
        "1.2, 3.4.pdf",
        "Smith, Inc.",
        "Smith,*.pdf",
        "a;b.pdf",
        "{12-34}.pdf",
        "log*",
        "*.pdf.",
        "README",
        "[pdf]",
        "a, b",
    ],
)
def test_a_rule_that_makes_sense_is_taken(name: str) -> None:
    """Unusual names are names."""
    assert matches(Attachment(name.replace("*", "x")), names=[name])


def test_the_place_of_each_fault_is_told() -> None:
    """As it is written in prefect.yaml."""
    bad = {"include": [{"names": ["*.x"]}, {"names": [7]}], "exclude": [{"max_bytes": 5}]}
    with pytest.raises(ValidationError) as raised:
        Filter.model_validate(bad)
    assert describe_errors(raised.value) == (
        "include[1].names[0]: Input should be a valid string; "
        "exclude[0]: unknown max_bytes; a rule has content_types, names, min_size, max_size"
    )


LIKELY = ["", "pdf", "*.pdf", "[a]*", "application/pdf", "a/b; c=d", "a/*, b/?", "\u202e", "{a,b}", 'a/b;;c="', 3, None]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(LIKELY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PATTERNS = st.lists(st.sampled_from(LIKELY) | st.text() | ANYTHING, max_size=3) | ANYTHING
RULES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"content_types": PATTERNS, "names": PATTERNS, "min_size": ANYTHING, "max_size": st.integers(0)}
    ),
    max_size=3,
)


@given(
    filter_=st.fixed_dictionaries({}, optional={"include": RULES | ANYTHING, "exclude": RULES}) | ANYTHING,
    attachment=st.builds(Attachment, st.none() | st.text(), st.none() | st.text() | st.sampled_from(LIKELY[:9])),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_is_taken_or_rejected_in_a_line(filter_: Any, attachment: Attachment) -> None:
    """Nothing but the one error comes out, for any filter; and what is taken decides on any attachment."""
    try:
        found = Filter.model_validate(filter_)
    except ValidationError as error:
        told = describe_errors(error)
    else:
        told = found.may_want(attachment) or found.decide(attachment).rule
    assert told


def test_each_alias_is_of_a_type_that_is_compared() -> None:
    """No alias leads to another alias, and no extension to an alias."""
    assert not set(ALIASES) & {*ALIASES.values(), *TYPES.values(), *UNINFORMATIVE_TYPES}


def test_a_filter_is_a_value() -> None:
    """Frozen, hashable, equal to its twin, and carried between processes and through JSON as it is."""
    assert pickle.loads(pickle.dumps(FILTER)) == FILTER
    assert Filter.model_validate_json(FILTER.model_dump_json()) == FILTER
    assert hash(FILTER) == hash(Filter.model_validate(FILTER.model_dump()))
    with pytest.raises(ValidationError):
        FILTER.include = ()  # type: ignore[misc]


def test_a_form_can_be_made_of_it() -> None:
    """The Prefect UI shows titles and descriptions, and refuses unknown keys itself."""
    schema = Filter.model_json_schema()
    for model in (schema, schema["$defs"]["Rule"]):
        assert model["additionalProperties"] is False
        assert model["description"]
        for field in model["properties"].values():
            assert field["title"]
            assert field["description"]


@pytest.mark.parametrize(
    ("content_type", "known"),
    [
        ("application/pdf", "application/pdf"),
        (' Application/X-PDF; name="jane.pdf"', "application/pdf"),
        ("image/pjpeg", "image/jpeg"),
        ("message/rfc822", "message/rfc822"),
        ("application/octet-stream", "application/octet-stream"),
        ("application/jane-doe", None),
        ("application/vnd.jane.doe+pdf", None),
        ("pdf", None),
        ("", None),
        (None, None),
    ],
)
def test_a_type_that_is_shown_is_a_known_one(content_type: str | None, known: str | None) -> None:
    """A sender may write anything as the type: what is in no table is not repeated in an artifact."""
    assert known_type(content_type) == known
