"""Loaded by every Python process of a kill test: counts what it writes, and ends it there by kill -9.

Python raises an audit event before each file operation, so that "the n-th file operation of the stage" is a point one
can come back to. KILL_TEST in the environment holds the order as JSON; without it nothing happens.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _role() -> str | None:
    """`stage` or `dvc`; None for any other Python that happens to run."""
    command = sys.orig_argv
    if "-m" in command and "pipelines" in command:
        return "stage"
    if any(os.path.basename(part) == "dvc" for part in command[:2]) and "repro" in command:  # noqa: PTH119
        return "dvc"
    return None


def _kill(order: dict) -> None:
    time.sleep(order["delay"])
    if order["whom"] == "both":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(order: dict, role: str) -> None:
    root, count = order["root"] + os.sep, 0

    def changes(event: str, arguments: tuple) -> bool:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING:
                return False
        elif event in CHANGES:
            path = arguments[0]
        else:
            return False
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return full.startswith(root) and "__pycache__" not in full

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if (event == "open" or event in CHANGES) and changes(event, arguments):
            count += 1
            if order.get("process") == role and order.get("operation") == count:
                if order["delay"]:
                    threading.Thread(target=_kill, args=(order,), daemon=True).start()
                else:
                    _kill(order)

    sys.addaudithook(hook)
    if "counts" in order:
        atexit.register(lambda: _note(order["counts"], {role: count}))


def _note(path: str, value: object) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (json.dumps(value) + "\n").encode())
    os.close(handle)


def _note_what_is_safe(path: str) -> None:
    """Write down what reached the disk for good; the rest is what a power cut may take."""
    fsync = os.fsync

    def noted(file: object) -> None:
        fsync(file)
        state = os.fstat(file if isinstance(file, int) else file.fileno())
        _note(path, [state.st_ino, state.st_mtime_ns])

    os.fsync = noted


if "KILL_TEST" in os.environ and (_running := _role()) is not None:
    _order = json.loads(os.environ["KILL_TEST"])
    _watch(_order, _running)
    if _running == "stage" and "safe" in _order:
        _note_what_is_safe(_order["safe"])
