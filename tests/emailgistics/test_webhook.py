"""Webhooks: who sent it, what it says, and what is answered."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attachments.emailgistics.errors import InvalidDelivery
from attachments.emailgistics.webhook import Delivery, authenticate, envelope, parse_delivery

PAYLOAD = {
    "id": "AAMk/AD+Q=",
    "event": "received",
    "internetMessageId": "<1@example.com>",
    "received": "2026-11-22T10:00:00Z",
    "mailbox": "shared@example.com",
    "sender": {"emailAddress": {"name": "Jane Doe", "address": "jane@example.com"}},
    "subject": "Your invoice",
    "hasAttachments": True,
    "timestamp": "2026-11-22T10:00:01.123Z",
    "conversationId": "AAQk=",
    "bodyText": "Dear all",
}


def delivered(**changes: object) -> Delivery:
    return parse_delivery(json.dumps({**PAYLOAD, **changes}).encode())


@pytest.mark.parametrize(
    ("event", "has_attachments", "is_received"),
    [("received", False, True), (None, None, True), ("closed", True, False)],
)
def test_whether_a_message_came_in_does_not_hang_on_its_attachments(
    event: str | None, has_attachments: bool | None, is_received: bool
) -> None:
    """For `--list-all`: inline parts are not counted."""
    assert delivered(event=event, hasAttachments=has_attachments).is_received is is_received


def test_what_is_needed_is_kept_and_nothing_else() -> None:
    """Sender, subject and text are dropped where they come in."""
    assert delivered().model_dump() == {
        "message_id": "AAMk/AD+Q=",
        "event": "received",
        "mailbox": "shared@example.com",
        "received": "2026-11-22T10:00:00Z",
        "conversation_id": "AAQk=",
        "has_attachments": True,
        "timestamp": "2026-11-22T10:00:01.123Z",
    }


def test_the_mailbox_is_not_shown() -> None:
    """An address does not reach a log by way of `repr` or `str`."""
    assert "example.com" not in repr(delivered()) + str(delivered())


@pytest.mark.parametrize(
    ("event", "has_attachments", "wanted"),
    [
        ("received", True, True),
        ("received", None, True),
        ("received", "yes", True),
        ("received", False, False),
        ("closed", True, False),
        (None, True, True),
        (["received"], True, True),
    ],
)
def test_when_there_is_something_to_fetch(event: object, has_attachments: object, wanted: bool) -> None:
    """A `received` message that does not deny attachments; a new event is nothing to us, an unsaid one is looked at."""
    assert delivered(event=event, hasAttachments=has_attachments).wants_download is wanted


@pytest.mark.parametrize("field", ["event", "mailbox", "received", "conversationId"])
@pytest.mark.parametrize("odd", [None, 7, 1.5, True, [], {"address": "x"}, "", "  ", "a\x00b", "a\nb", "\ud800"])
def test_odd_optional_fields_are_none(field: str, odd: object) -> None:
    """A field that we could do without never costs the delivery."""
    delivery = delivered(**{field: odd})
    assert delivery.message_id == "AAMk/AD+Q="
    assert getattr(delivery, "conversation_id" if field == "conversationId" else field) is None


def test_optional_text_is_trimmed_and_capped() -> None:
    """Nothing that a stranger sends grows without bound."""
    delivery = delivered(mailbox="  a@b.c  ", conversationId="x" * 10_000, event="e" * 10_000)
    assert delivery.mailbox == "a@b.c"
    assert delivery.conversation_id is not None
    assert len(delivery.conversation_id) == 2048
    assert len(delivery.event or "") == 64
    assert delivered(event="e" * 63 + " and more").event == "e" * 63, "also where it is cut"


@pytest.mark.parametrize("message_id", ["x", "x" * 2048, "日本", "a b", "a/b+c="])
def test_an_id_is_kept_as_it_is(message_id: str) -> None:
    """Ids are opaque: not even trimmed."""
    assert delivered(id=message_id).message_id == message_id


@pytest.mark.parametrize("around", [" ", "\n", "\r\n", "\t \xa0", "\ufeff"])
def test_blanks_around_an_id_are_not_part_of_it(around: str) -> None:
    """Else a webhook that is sent again by hand would be another message; alone they are no id."""
    assert delivered(id=f"{around}AAMk/AD+Q={around}").message_id == "AAMk/AD+Q="
    with pytest.raises(InvalidDelivery, match="no id"):
        delivered(id=around)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"{}",
        b"{'id': 'x'}",
        b'{"id": "x"',
        b'{"id": "x"} {}',
        b'{"id": null}',
        b'{"id": ""}',
        b'{"id": "   "}',
        b'{"id": 7}',
        b'{"id": ["x"]}',
        b'{"id": "a\\u0000b"}',
        b'{"id": "a\\nb"}',
        b'{"id": "a\\u0085b"}',
        b'{"id": "\\ud800"}',
        b'{"id": "' + b"x" * 2049 + b'"}',
        b'{"id": "x", "n": NaN}',
        b'{"id": "x", "n": -Infinity}',
        b'{"id": "x", "n": 1' + b"0" * 5000 + b"}",
        b'{"id": "\xff"}',
        '{"id": "x"}'.encode("utf-16"),
        b'{"id": "x", "n": ' + b"[" * 200_000,
        b'{"id": "x", "n": ' + b'{"n": ' * 200_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_cannot_be_read_is_an_invalid_delivery(body: bytes) -> None:
    """One type of error for all of it, which never quotes the payload."""
    with pytest.raises(InvalidDelivery) as raised:
        parse_delivery(body)
    assert raised.value.__cause__ is None


def test_the_error_does_not_quote_the_payload() -> None:
    """The body of a broken delivery holds customer data as much as a whole one."""
    with pytest.raises(InvalidDelivery) as raised:
        parse_delivery(b'{"id": "", "subject": "CANARY", "bodyText": CANARY}')
    assert "CANARY" not in str(raised.value) + repr(raised.value)


def test_a_byte_order_mark_and_duplicate_keys_are_tolerated() -> None:
    """Neither makes the delivery ambiguous: the last of two keys counts, as in most parsers."""
    assert parse_delivery(b'\xef\xbb\xbf{"id": "x", "id": "y"}').message_id == "y"


# Building its tables of Unicode, once on a new machine, is slow enough to fail hypothesis' own checks.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=200)

json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["id", "event", "mailbox", "received", "conversationId", "hasAttachments", "other"]


@patient
@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_json_is_a_delivery_or_invalid(payload: dict[str, object]) -> None:
    """Whatever the fields hold, there is a delivery that can be encoded, or the one error."""
    try:
        delivery = parse_delivery(json.dumps(payload).encode())
    except InvalidDelivery:
        return
    delivery.model_dump_json().encode()


@patient
@given(st.binary())
def test_any_bytes_are_a_delivery_or_invalid(body: bytes) -> None:
    """A stranger's bytes raise nothing else."""
    try:
        parse_delivery(body)
    except InvalidDelivery:
        return


@pytest.mark.parametrize(
    ("header", "secrets", "let_in"),
    [
        ("Bearer one", ["one"], True),
        ("bearer one", ["one"], True),
        ("  Bearer   one  ", ["one"], True),
        ("Bearer two", ["one", "two"], True),
        ("Bearer one", ["one", "two"], True),
        ("Bearer three", ["one", "two"], False),
        ("Bearer onetwo", ["one", "two"], False),
        ("Bearer One", ["one"], False),
        ("Bearer on", ["one"], False),
        ("Basic one", ["one"], False),
        ("one", ["one"], False),
        ("Bearer", ["one"], False),
        ("Bearer ", [""], False),
        ("Bearer", [""], False),
        ("", [""], False),
        (None, ["one"], False),
        (None, [], False),
        ("Bearer one", [], False),
        ("Bearer \udc80", ["one"], False),
        ("Bearer ö\x00\n", ["one"], False),
    ],
)
def test_who_is_let_in(header: str | None, secrets: list[str], let_in: bool) -> None:
    """The bearer of any current secret, and nobody else; an empty secret is none."""
    assert authenticate(header, secrets) is let_in


@patient
@given(st.none() | st.text(st.characters(codec=None)), st.lists(st.text(st.characters(codec=None)), max_size=3))
def test_authentication_never_raises(header: str | None, secrets: list[str]) -> None:
    """Yes or no, whatever is sent; yes only for a bearer token that is one of the secrets."""
    if authenticate(header, secrets):
        assert header is not None
        assert any(secret in header for secret in secrets)


def test_all_secrets_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time taken tells neither whether a secret matched nor which one: there is no early exit."""
    import hmac

    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    assert authenticate("Bearer one", ["one", "two", "three"])
    assert not authenticate("Basic nobody", ["one", "two", "three"])
    assert compared == [b"one", b"two", b"three"] * 2


def test_the_envelope_is_the_documented_one() -> None:
    """Status and message, and actions only when there are any."""
    assert envelope("success", "Queued") == {"status": "success", "message": "Queued"}
    action = {"type": "tag", "value": {"tags": ["Filed"]}}
    assert envelope("success", "Queued", [action]) == {  # type: ignore[list-item]
        "status": "success",
        "message": "Queued",
        "actions": [action],
    }
