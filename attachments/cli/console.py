"""What the command `attachments` starts with: until it is under way, Ctrl-C ends the process without a word.

Python's own handler would show a traceback of whatever is imported just then.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as of `nohup` or `&`
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> int:
    """Run a command; see `attachments.cli.main`."""
    from attachments.cli.main import main as run  # takes a while, and Ctrl-C may come meanwhile

    return run()
