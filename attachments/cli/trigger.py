"""`attachments trigger`."""

import os

from attachments.cli.options import MessageId, Url
from attachments.cli.secret_files import read_secret_files, webhook_secrets
from attachments.foundation.terminal_text import say


def trigger(
    message_id: MessageId, /, *, url: Url = "http://127.0.0.1:8080/webhooks/default", mailbox: str | None = None
) -> None:
    """Send a webhook as Emailgistics would, to try an installation.

    The secret comes from EMAILGISTICS_WEBHOOK_SECRET. For example:
      attachments trigger "$MESSAGE_ID"
      attachments trigger "$MESSAGE_ID" --url https://mail.example.com/webhooks/default

    Args:
        url: The receiver.
        mailbox: The shared mailbox's address.
    """
    read_secret_files(os.environ)
    from attachments.cli.actions.store_access import call_store, configured_store
    from attachments.cli.actions.webhook_post import post_webhook
    from attachments.storage.keys import may_name_key

    if may_name_key(message_id):  # a webhook needs the id, which is in the key's manifest
        with configured_store() as store:
            message_id = call_store(lambda: store.message_id(message_id))
    say(post_webhook(url, next(iter(webhook_secrets()), None), message_id, mailbox))
