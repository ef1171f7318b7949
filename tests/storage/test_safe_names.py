"""Whatever a sender calls a file, its stored name is harmless on every store and operating system."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attachments.storage.names import MAX_BYTES, safe_name, shorter_names

FORBIDDEN = set('/\\<>:"|?*#%[]')
DEVICES = {"con", "prn", "aux", "nul", "clock$", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}

NASTY = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=["Cs", "Cf", "Cc", "Cn", "Co", "Mn", "Zs"]),
        st.sampled_from('/\\.:~-_ $\u200d\u200c\u202e\u0301\u00b9<>"|?*#%[]'),
        st.sampled_from("NULnulCOMcom1"),
    ),
    max_size=400,
)

KEPT_AS_THEY_ARE = [
    "invoice.pdf",
    "日本語.pdf",
    "見積書　10月.xlsx",
    "Rechnung März (2).PDF",
    "résumé – final, v2.docx",
    "~$draft.docx",
    "a.tar.gz",
    "no extension",
    "manifest.json",
    "می‌خواهم.pdf",
    "क्‍ष.pdf",
    "👨‍👩‍👧.png",
    "❤️.png",
    "葛\U000e0100.txt",
    "ℹ️ 1️⃣ ❤️‍🔥.png",
    "ᠠ\u180b.txt",
    "=SUM(A1) & 'x'; $y + z@!.csv",
    "ⅷ．txt",
    "nullable.pdf",
    "console.log",
    "COM10.txt",
    "\u0602 7.pdf",
]

CLEANED = [
    # paths
    ("../../etc/passwd", "passwd"),
    ("..\\..\\boot.ini", "boot.ini"),
    ("/etc/passwd", "passwd"),
    ("C:\\x\\y.pdf", "y.pdf"),
    ("c:/x/y.pdf", "y.pdf"),
    ("\\\\server\\share\\y.pdf", "y.pdf"),
    ("~/y.pdf", "y.pdf"),
    ("file:///x/y.pdf", "y.pdf"),
    ("a/../b.pdf", "b.pdf"),
    ("a/..", "a"),
    (".\u200b./\u202e../x.pdf", "x.pdf"),
    ("Offer 1/2.pdf", "Offer 1_2.pdf"),
    ("and\\or.pdf", "and_or.pdf"),
    ("C:y.pdf", "C_y.pdf"),
    # nothing left
    (None, "attachment"),
    ("", "attachment"),
    (".", "attachment"),
    ("..", "attachment"),
    ("...", "attachment"),
    (" . . ", "attachment"),
    ("/", "attachment"),
    ("\u200b\ufeff\u2060", "attachment"),
    ("\u3164", "attachment"),
    # invisible
    ("invoice\u202efdp.exe", "invoicefdp.exe"),
    ("a\u2066b\u2069c\u200e\u200f\u061c.pdf", "abc.pdf"),
    ("in\u200bvo\u2060ice\ufeff.pdf", "invoice.pdf"),
    ("in\u200dvo\u200cice.pdf", "invoice.pdf"),
    ("soft\u00adhyphen.pdf", "softhyphen.pdf"),
    ("\U000e0041tagged.pdf", "tagged.pdf"),
    *(
        (name.replace("~", selector), "setup.exe")
        for selector in (
            "\u180b",
            "\u180c",
            "\u180d",
            "\u180f",
            "\ufe00",
            "\ufe0e",
            "\ufe0f",
            "\U000e0100",
            "\U000e01ef",
        )
        for name in (
            "setup.exe~",
            "setup.ex~e",
            "setup.~exe",
            "setup~.exe",
            "~setup.exe",
            "setup.exe~~",
            "setup.exe~.~",
        )
    ),
    ("setup.exe\u2800\ufe0f", "setup.exe"),
    ("❤\ufe0f\ufe0f.png", "❤\ufe0f.png"),
    ("ᠠ\ufe0f.txt", "ᠠ.txt"),
    ("#\ufe0f\u20e3.txt", "_\u20e3.txt"),
    ("line\u0085break\u2028s\u2029.pdf", "line break s .pdf"),
    ("two\r\nlines\t.pdf", "two  lines .pdf"),
    ("nul\x00byte\x1b[31m\x9b.pdf", "nul_byte_(31m_.pdf"),
    # no characters
    ("half\ud800.pdf", "half_.pdf"),
    ("\udcff", "_"),
    ("whole\ud83d\ude00.pdf", "whole😀.pdf"),
    ("private\ue000\U0010fffd.pdf", "private__.pdf"),
    ("non\ufffe\ufdd0\U0001ffff.pdf", "non___.pdf"),
    ("unassigned\u0378.pdf", "unassigned_.pdf"),
    # Windows
    ("NUL", "_NUL"),
    ("NUL .pdf", "_NUL .pdf"),
    ("con", "_con"),
    ("Aux.txt", "_Aux.txt"),
    ("COM¹", "_COM¹"),
    ("com².log", "_com².log"),
    ("LPT1.tar.gz", "_LPT1.tar.gz"),
    ("LPT0", "_LPT0"),
    ("CONIN$", "_CONIN$"),
    ("conout$.txt", "_conout$.txt"),
    ("CLOCK$", "_CLOCK$"),
    ("N\u200bUL", "_NUL"),
    ('a<b>c:d"e|f?g*h.pdf', "a_b_c_d_e_f_g_h.pdf"),
    ("file.pdf:stream", "file.pdf_stream"),
    ("dots and spaces. . .", "dots and spaces"),
    ("  indented.pdf", "indented.pdf"),
    ("one thing after another.\u3000.", "one thing after another"),
    ("trailing.pdf\u3000\u00a0 ", "trailing.pdf"),
    # patterns, URLs, options, hidden files
    ("scan[1].pdf", "scan(1).pdf"),
    ("50%2F off#1.pdf", "50_2F off_1.pdf"),
    ("a.pdf?x=1", "a.pdf_x=1"),
    ("-rf", "_rf"),
    ("--help.txt", "_-help.txt"),
    (".htaccess", "_.htaccess"),
    (".pdf", "_.pdf"),
    ("..pdf", "_..pdf"),
    # one spelling
    ("re\u0301sume\u0301.pdf", "résumé.pdf"),
    ("a\u200b\u0301.pdf", "á.pdf"),
]


@pytest.mark.parametrize("name", KEPT_AS_THEY_ARE)
def test_a_harmless_name_stays_as_it_is(name: str) -> None:
    """People find their files under the names that they know, in any script."""
    assert safe_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(("name", "expected"), CLEANED)
def test_a_hostile_name_becomes_harmless(name: str | None, expected: str) -> None:
    """Each known trick, and what is left of it."""
    assert safe_name(name) == expected


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a" * 300 + ".pdf", ".pdf"),
        ("日" * 300 + ".pdf", ".pdf"),
        ("a" * 300 + ".tar.gz", ".tar.gz"),
        ("a" * 300 + ".pdf.p7m", ".pdf.p7m"),
        ("a" * 300 + ".見積書", ".見積書"),
    ],
)
def test_a_long_name_keeps_its_extension(name: str, ending: str) -> None:
    """Programs open files by their extension, so it survives shortening."""
    short = safe_name(name)
    assert short.endswith(ending)
    assert MAX_BYTES - 4 < len(short.encode()) <= MAX_BYTES


def test_an_absurdly_long_extension_is_none() -> None:
    """What runs on for hundreds of characters is part of the title, and cut like it."""
    assert safe_name("a." + "b" * 300) == "a." + "b" * 252 + "_"


@pytest.mark.parametrize("letter", ["e\u0323\u0301", "👨‍👩‍👧", "👍🏽", "❤️", "क्ष", "1️⃣"])
def test_no_cut_takes_a_letter_apart(letter: str) -> None:
    """Shortening removes whole letters with all their marks, whole emoji with all their parts."""
    letter = unicodedata.normalize("NFC", letter)
    for lead in range(8):
        stem = safe_name("x" * lead + letter * 300 + ".pdf").removesuffix(".pdf").lstrip("x")
        if letter != "क्ष":  # two code points that may also stand alone
            assert stem == letter * (len(stem) // len(letter))
        assert len(stem.encode()) > MAX_BYTES // 2


def test_a_letter_of_nothing_but_accents_still_has_a_name() -> None:
    """Text made to overflow its line must neither vanish nor grow."""
    assert len(safe_name("a" + "\u0335" * 2000).encode()) == MAX_BYTES


def test_another_fallback_is_made_safe_as_well() -> None:
    """What replaces a missing name obeys the same rules."""
    assert safe_name(None, fallback="message.eml") == "message.eml"
    assert safe_name("..", fallback="../../x") == "x"
    assert safe_name("..", fallback="") == "attachment"


@given(NASTY)
@example("\u0344\u0301" * 100)
@example("." + "a" * 254)
@example("-" + "\u202e-" * 20)
@example("\U0001d15e" * 90)
@example("a" * 250 + "." + " " * 20 + "x")
@example("NUL" + "\u200b" * 5 + "." * 300 + "x")
def test_every_name_is_harmless(name: str) -> None:
    """For any text at all: the rules that all stores and systems have, taken together."""
    safe = safe_name(name)
    assert safe
    assert not FORBIDDEN & set(safe)
    assert len(safe.encode("utf-8")) <= MAX_BYTES
    assert safe == unicodedata.normalize("NFC", safe)
    assert safe[0] not in ".- "
    assert safe[-1] not in ". "
    assert safe == safe.strip()
    assert safe.partition(".")[0].rstrip().casefold() not in DEVICES
    categories = {unicodedata.category(char) for char in safe if char not in "\u200c\u200d"}
    assert not categories & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(NASTY)
def test_a_safe_name_is_its_own_safe_name(name: str) -> None:
    """A name that went through twice (a manifest read back, a second run) does not change again."""
    once = safe_name(name)
    assert safe_name(once) == once


@given(st.lists(NASTY, min_size=1, max_size=3))
def test_every_name_can_be_a_file(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """The operating system agrees, and hands the name back as it was given."""
    folder = tmp_path_factory.mktemp("names")
    for name in map(safe_name, names):
        (folder / name).write_bytes(b"")
        assert name in {path.name for path in Path(folder).iterdir()}


def test_no_name_takes_quadratic_time() -> None:
    """Alternating accents are the worst for Unicode's normal forms: 400,000 of them would take an hour."""
    assert safe_name("a" + "\u0301\u0316" * 200_000 + ".pdf").endswith(".pdf")
    assert safe_name("../" * 200_000 + "a.pdf") == "a.pdf"


@pytest.mark.parametrize("most", [143, 82])
@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("n" * 300 + ".pdf", ".pdf"),
        ("語" * 200 + ".pdf.p7m", ".pdf.p7m"),
        ("\N{FACE WITH TEARS OF JOY}" * 90 + ".tar.gz", ".tar.gz"),
        ("e\N{COMBINING ACUTE ACCENT}x" * 90, ""),
        ("n" * 140 + "." * 10 + " .pdf.age", ".pdf.age"),
        (f"n.{'語' * 12}.{'語' * 16}", "." + "語" * 16),
    ],
)
def test_a_name_is_shortened_to_what_a_store_allows(name: str, extension: str, most: int) -> None:
    """The extension stays, the last one at least; a shortened name is safe, and shortening it again changes nothing."""
    short = safe_name(name, most=most)
    assert len(short.encode()) <= most
    assert short.endswith(extension)
    assert safe_name(short) == safe_name(short, most=most) == short
    *_, last = shorter_names(safe_name(name))
    assert len(last.encode()) <= 82
    assert list(shorter_names(safe_name(name))) == list(shorter_names(safe_name(name)))


LONG = st.builds(
    lambda start, letters, ending, rest: start + letters + ending + rest,
    st.sampled_from(["", "a.exe.", "Nr. 1 ", "x.pdf", ".", "NUL."]),
    st.builds(str.__mul__, st.sampled_from(["x", "日", "e\u0301", "\u200d"]), st.integers(0, 260)),
    st.sampled_from([".exe", ".EXE", ".js", ".exe.age", ".pdf.exe", ".settingcontent-ms", ".ex_", ".exe\u200b"]),
    st.text(st.sampled_from("._ aAeg\u200b\u0301日-"), max_size=300),
)


def extension(name: str) -> str:
    """What a filter, Windows and a desktop take for it."""
    return name.casefold().rpartition(".")[2] if "." in name else ""


@given(st.one_of(LONG, NASTY), st.integers(82, 255), st.sampled_from(["", ".age"]))
@example("x" * 139 + ".exe" + "._" * 70, 143, "")
@example("x" * 247 + ".exe____", 255, ".age")
@example("x" * 78 + ".exe" + "日" * 70, 82, ".age")
@example("x" * 74 + ".exe." + "日" * 12 + "." + "日" * 16, 143, ".age")
@example("x" * 251 + ".exe" + "y" * 300, 255, "")
def test_no_cut_gives_a_name_another_extension(name: str, most: int, suffix: str) -> None:
    """A filter judges the whole name; what a store cuts of it, as often as it likes, is no other kind of file."""
    judged = safe_name(name)
    for stored in shorter_names(safe_name(judged + suffix, most=most)):
        assert len(stored.encode()) <= most
        assert stored.endswith(suffix)
        left = stored.removesuffix(suffix)
        assert extension(left) == extension(judged) or "." not in left or left.endswith("_")
        decrypted = safe_name(left)  # what `decrypt` calls it
        for written in shorter_names(decrypted):
            assert extension(written) == extension(judged) or "." not in written or written.endswith("_")
