"""The original file name in a `Content-Disposition` header."""

import encodings
import pkgutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attachments.emailgistics import filename_of

HEADERS: list[tuple[str | None, str | None]] = [
    # Plain
    ('attachment; filename="invoice.pdf"', "invoice.pdf"),
    ("attachment; filename=invoice.pdf", "invoice.pdf"),
    ('inline; filename="invoice.pdf"', "invoice.pdf"),
    ('ATTACHMENT; FILENAME="invoice.pdf"', "invoice.pdf"),
    ('attachment;filename="invoice.pdf"', "invoice.pdf"),
    ('attachment ; filename = "invoice.pdf" ', "invoice.pdf"),
    ('attachment; filename="invoice.pdf";', "invoice.pdf"),
    ("attachment; filename=invoice.pdf ; size=3", "invoice.pdf"),
    ('attachment; filename="my invoice.pdf"', "my invoice.pdf"),
    ('attachment; filename=""', None),
    ('attachment; filename="invoice.pdf"; creation-date="Wed, 12 Feb 1997 16:29:51 -0500"', "invoice.pdf"),
    ('attachment; size=9; filename="invoice.pdf"', "invoice.pdf"),
    ('attachment; x-filename="no.pdf"; filename="yes.pdf"', "yes.pdf"),
    # None to be had
    (None, None),
    ("", None),
    ("attachment", None),
    ("attachment;", None),
    ("attachment; size=3", None),
    # Quoting
    (r'attachment; filename="a \"quoted\" name.pdf"', 'a "quoted" name.pdf'),
    (r'attachment; filename="back\\slash.pdf"', r"back\slash.pdf"),
    ('attachment; filename="a;b;c.pdf"', "a;b;c.pdf"),
    ('attachment; filename="a;b.pdf"; size=3', "a;b.pdf"),
    (r'attachment; filename="a\";b.pdf"', 'a";b.pdf'),
    ('attachment; filename="a=b, c.pdf"', "a=b, c.pdf"),
    ('attachment; filename="it\'s.pdf"', "it's.pdf"),
    ('attachment; filename="a "quoted" name.pdf"', 'a "quoted" name.pdf'),
    ('attachment; filename="100%25.pdf"', "100%25.pdf"),
    # RFC 8187
    ("attachment; filename*=UTF-8''%e2%82%ac%20rates.pdf", "€ rates.pdf"),
    ("attachment; filename*=utf-8'en'%E2%82%AC%20rates.pdf", "€ rates.pdf"),
    ("attachment; filename*=iso-8859-1''%A3%20rates.pdf", "£ rates.pdf"),
    ("attachment; filename*=windows-1252''%80%20rates.pdf", "€ rates.pdf"),
    ("attachment; filename*=Shift_JIS''%93%FA%96%7B.pdf", "日本.pdf"),
    ("attachment; filename=\"EURO.pdf\"; filename*=utf-8''%e2%82%ac.pdf", "€.pdf"),
    ("attachment; filename*=utf-8''%e2%82%ac.pdf; filename=\"EURO.pdf\"", "€.pdf"),
    ("attachment; filename*=UTF-8''a%3Bb.pdf", "a;b.pdf"),
    ("attachment; filename*=UTF-8''%E2%82.pdf; filename=\"plain.pdf\"", "plain.pdf"),
    ("attachment; filename*=nonsense''%41.pdf; filename=\"plain.pdf\"", "plain.pdf"),
    ("attachment; filename*=unicode_escape''%5Cx41; filename=\"plain.pdf\"", "plain.pdf"),
    ("attachment; filename*=unicode-escape''%5Cq", None),
    ("attachment; filename*=rot13''%41.pdf; filename=plain.pdf", "plain.pdf"),
    ("attachment; filename*=undefined''%41.pdf; filename=plain.pdf", "plain.pdf"),
    ("attachment; filename*=idna''%41..pdf; filename=plain.pdf", "plain.pdf"),
    ("attachment; filename*=UTF-8''%ED%A0%80.pdf", None),
    ("attachment; filename*=UTF-8''it's.pdf; filename=plain.pdf", "it's.pdf"),
    ("attachment; filename*=UTF-8''%41.pdf; filename=two words.pdf", "A.pdf"),
    ("attachment; filename*=invoice.pdf; filename=plain.pdf", "plain.pdf"),
    # Continuations (RFC 2231)
    ('attachment; filename*0="invo"; filename*1="ice.pdf"', "invoice.pdf"),
    ("attachment; filename*0*=UTF-8''%e2%82; filename*1=%ac.pdf", "€.pdf"),
    ("attachment; filename*0*=unicode_escape''%5Cq; filename*1=x", None),
    ('attachment; filename*0="unicode_"; filename*1="escape\'\'%5Cq"', None),
    ('attachment; filename*0="it\'s.pdf"', None),
    ('attachment; filename*1="ice.pdf"', None),
    ('attachment; filename*0="a;b"; filename*1=".pdf"', "a;b.pdf"),
    ("attachment; " + "; ".join(f"filename*{number}={number}" for number in range(12)), "01234567891011"),
    ('attachment; filename*0="invo"; filename*2="ice.pdf"', None),
    ('attachment; filename*0="invo"; filename*1=ice .pdf', None),
    # Ambiguous or broken
    ('attachment; filename="one.pdf"; filename="two.pdf"', None),
    ('attachment; filename="unclosed.pdf', None),
    ("attachment; filename=two words.pdf", None),
    ("attachment; filename=", None),
    ("attachment; filename", None),
    ('filename="invoice.pdf"', None),
    ('"attachment"; filename="invoice.pdf"', None),
    ('attachment, filename="invoice.pdf"', None),
    ("=?x; ;;;=;", None),
    ("attachment; " + "filename=" + "x" * 20_000, None),
    # Bytes that are no ASCII
    ('attachment; filename="naïve.pdf"', "naïve.pdf"),
    ('attachment; filename="日本語.pdf"', "日本語.pdf"),
    ('attachment; filename="' + "日本語".encode().decode("latin-1") + '.pdf"', "日本語.pdf"),
    ('attachment; filename="' + "naïve".encode("latin-1").decode("latin-1") + '.pdf"', "naïve.pdf"),
    ('attachment; filename="' + "日本語".encode().decode("ascii", "surrogateescape") + '.pdf"', "日本語.pdf"),
    ('attachment; filename="na' + b"\xef".decode("utf-8", "surrogateescape") + 've.pdf"', "naïve.pdf"),
    ('attachment; filename="a\ud800b.pdf"', "a\ufffdb.pdf"),
    # RFC 2047, where it does not belong
    ('attachment; filename="=?UTF-8?B?5pel5pys6KqeLnBkZg==?="', "日本語.pdf"),
    ('attachment; filename="=?utf-8?Q?=E2=82=AC_rates.pdf?="', "€ rates.pdf"),
    ('attachment; filename="=?iso-8859-1?q?na=EFve?= =?utf-8?q?_=E2=82=AC.pdf?="', "naïve €.pdf"),
    ('attachment; filename="=?UTF-8*en?Q?a.pdf?="', "a.pdf"),
    ('attachment; filename="=?nonsense?B?5pel?="', "=?nonsense?B?5pel?="),
    ('attachment; filename="=?unicode_escape?Q?=5Cq?="', "=?unicode_escape?Q?=5Cq?="),
    ('attachment; filename="=?UTF-8?B?x?="', "=?UTF-8?B?x?="),
    ('attachment; filename="=?UTF-8?Q?=E2=82?="', "=?UTF-8?Q?=E2=82?="),
    ("attachment; filename*=UTF-8''%3D%3FUTF-8%3FQ%3Fa%3F%3D", "=?UTF-8?Q?a?="),
    # As it was sent: making a name safe is the store's business
    ('attachment; filename="dir/name.pdf"', "dir/name.pdf"),
    ('attachment; filename="/etc/passwd"', "/etc/passwd"),
    ("attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
]


@pytest.mark.parametrize(("header", "name"), HEADERS, ids=[f"{n}" for n in range(len(HEADERS))])
def test_the_name_is_found(header: str | None, name: str | None) -> None:
    """`filename*` wins over `filename`; what is broken or ambiguous is None, never half a name."""
    assert filename_of(header) == name


@pytest.mark.parametrize(
    "codec", sorted({name for _, name, _ in pkgutil.iter_modules(encodings.__path__)} - {"aliases"})
)
def test_no_codec_of_pythons_does_harm(codec: str) -> None:
    """The charset comes from the sender, and Python has codecs for far more than charsets."""
    for octets in ("%41", "%5Cq%5Cx", "%FF%00%80", "..%2E", "%2B%2Fv8-"):
        filename_of(f"attachment; filename*={codec}''{octets}")
        filename_of(f"attachment; filename*0*={codec}''{octets}; filename*1=x")
        filename_of(f"attachment; filename*0=\"{codec}''{octets}\"")
        filename_of(f"attachment; filename*0=\"{codec}\x00''{octets}\"")
        filename_of(f'attachment; filename="=?{codec}?Q?{octets.replace("%", "=")}?="')


def test_nothing_is_warned_of() -> None:
    """A warning would carry the header, and with it the name: there is none, whatever filters are set."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for header, _ in HEADERS:
            filename_of(header)
    assert caught == []


def test_threads_do_not_disturb_each_other() -> None:
    """Downloads run in threads: what one of them reads changes no state that the others see."""
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(filename_of, [header for header, _ in HEADERS] * 20))
    assert names == [name for _, name in HEADERS] * 20
    assert warnings.filters == before


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
PIECES = [
    "attachment", ";", " ", "filename", "filename*", "filename*0", "filename*0*", "*1", "=", '"', "\\", "'", "''",
    "UTF-8", "utf-7", "idna", "%E2%82%AC", "%ff", "%", "=?UTF-8?B?", "=?", "?Q?", "?=", "a.pdf", "\ud800", "é", "日",
    "\x00",
]  # fmt: skip


@patient
@given(st.text(st.characters(codec=None)) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
@example('attachment; filename="' + '\\"' * 8_000)
@example("attachment; filename*0=" + "*" * 9_000)
def test_any_header_gives_a_name_or_none(header: str) -> None:
    """No header raises, and a name can always be encoded."""
    name = filename_of(header)
    if name is not None:
        assert name
        name.encode()
