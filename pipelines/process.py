"""How a stage's process lives and ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
STARTED_BY_US = "COMPRESS_STARTED_BY_US"
"""Set in the environment of processes among which a command divides its work."""


def die_with_parent() -> None:
    """When DVC or one of our commands started this, end with it: killed alone, it would leave this as an orphan.

    A second `dvc repro` would then start the same stage beside it. Linux only; elsewhere the checkpoint lock holds.
    """
    if not {"DVC_STAGE", STARTED_BY_US} & os.environ.keys() or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # it ended before the line above took effect
        sys.exit("what started this has ended; this ends too")
