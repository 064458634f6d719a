"""Standard output for people."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console

WIDTH_OF_A_FILE = 140


def console() -> Console:
    """Standard output; wide enough for the table when it is a pipe or a log."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_OF_A_FILE
    return Console(highlight=False, width=width)
