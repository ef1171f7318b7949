"""`python -m attachments.cli`: the command, where its script is not in the path."""

import sys

from attachments.cli.console import main

sys.exit(main())
