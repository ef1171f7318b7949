"""The command `attachments`: one module per command."""
