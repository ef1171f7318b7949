"""A message's id, as it is compared, hashed and sent. Knows nothing of the rest."""

import string

_BLANKS = (
    string.whitespace
    + "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    + "\u2028\u2029\u202f\u205f\u3000"  # so far what str.strip() takes
    + "\u200b\u200c\u200d\u2060\ufeff"  # invisible; web pages and spreadsheets add them to what is copied
)


def normalized(message_id: str) -> str:
    """The id without the blanks, line ends and invisible characters around it that come with copying.

    Every way in uses this one, and so does `message_key`: the same message must not get two keys.
    """
    return message_id.strip(_BLANKS)


def mistake_in(message_id: str) -> str | None:
    """What an id holds that no id of Microsoft Graph's does, as text that was shortened or badly copied; else None.

    Of an id that is already `normalized`. Webhooks and reports are taken as they come; a message's run tells.
    """
    if any(letter.isspace() or not letter.isprintable() for letter in message_id):
        return "it has a blank or a control character in it"
    if not message_id.isascii():
        return "it holds a character that is not ASCII"
    return None
