"""How a stage's process lives and ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_dvc() -> None:
    """When DVC started this stage, end with it: killing DVC alone would leave the stage training as an orphan.

    A second `dvc repro` would then start the same stage beside it. Linux only; elsewhere the checkpoint lock holds.
    """
    if "DVC_STAGE" not in os.environ or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:  # DVC ended before the line above took effect
        sys.exit("dvc has ended; this stage ends too")
