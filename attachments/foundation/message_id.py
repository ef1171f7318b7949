"""Normalization of a message's id, before it is compared, hashed or sent."""

import string

_BLANKS = (
    string.whitespace
    + "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    + "\u2028\u2029\u202f\u205f\u3000"  # up to here, what str.strip() removes
    + "\u200b\u200c\u200d\u2060\ufeff"  # invisible; copying from web pages and spreadsheets adds them
)


def normalized(message_id: str) -> str:
    """The id without surrounding blanks, line ends and invisible characters, which copying adds.

    Every entry point and `message_key` use it, because one message must not get two keys.
    """
    return message_id.strip(_BLANKS)


def mistake_in(message_id: str) -> str | None:
    """Why an id cannot be one of Microsoft Graph, for example because it was badly copied; None if it can.

    Expects an id that is already `normalized`. Ids from webhooks and reports are not checked; their runs would fail.
    """
    if any(letter.isspace() or not letter.isprintable() for letter in message_id):
        return "it contains a blank or a control character"
    if not message_id.isascii():
        return "it contains a character that is not ASCII"
    return None
