"""Entry point of the command `attachments`. During its start, Ctrl-C ends the process silently.

Python's own handler would print a traceback of the import in progress.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as under `nohup` or `&`
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run a command; see `attachments.cli.main`."""
    from attachments.cli.main import main as run  # slow, and Ctrl-C may arrive during it

    return run()
