"""Open the tracker's user interface on the embedded store."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from pipelines.tracking.view import PORT, seed_view, ui_command

ADDRESS = f"http://127.0.0.1:{PORT}"


def run(root: Path) -> None:
    """Serve the UI on the loopback address until the person ends it.

    Raises:
        TrackingError: the runs are on a server, which has a UI of its own.
    """
    command = ui_command(root)
    page = seed_view(root) or ""
    print(f"open {ADDRESS}{page}  (Ctrl-C ends it)", flush=True)
    with subprocess.Popen(command) as server:
        # Ctrl-C reaches the server too, which then ends by itself; this process only waits for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.wait()
