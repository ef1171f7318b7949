"""`attachments demo`."""

from pathlib import Path

from attachments.cli.options import FilePath


def demo(*, folder: FilePath = Path("build/demo"), keep: bool = False) -> int:
    """Run the whole product on this machine, with sample mail.

    For example:
      attachments demo
      attachments demo --keep

    Args:
        folder: The folder for everything that the demo writes.
        keep: Leave everything running until Ctrl-C.
    """
    from attachments.demo.show import run_demo

    return run_demo(folder.resolve(), keep=keep)
