"""Passwords in addresses of the tracking store go nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import TrackingError
from pipelines import prepare, teacher
from pipelines.doctor import _mlflow_state
from pipelines.redaction import redacted
from pipelines.tracking.store import Store, reached, reason, warn
from tests.pipelines.project import make_project

SECRET = "hunter2-hunter2"
SERVER = f"http://somebody:{SECRET}@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SERVER}/api", "http://***@127.0.0.1:9/api"),
        ("postgresql://me:p@ss@db/x", "postgresql://***@db/x"),
        ("https://token@host/a and http://u:p@other", "https://***@host/a and http://***@other"),
        ("mysql://db/x?user=me&password=abc&ssl=1", "mysql://db/x?user=me&password=***&ssl=1"),
        ("https://host/x?X-Amz-Signature=abc&token=def", "https://host/x?X-Amz-Signature=***&token=***"),
        ("Authorization: Bearer abcdefgh.ij", "Authorization: Bearer ***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("https://host/a@b/c?page=2", "https://host/a@b/c?page=2"),
        ("sqlite:////home/me/mlflow.db, see docs/params.md", "sqlite:////home/me/mlflow.db, see docs/params.md"),
        ("basic training of bearers", "basic training of bearers"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_messages_of_the_tracker_hide_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.delenv("COMPRESS_TRACKING", raising=False)
    with pytest.raises(TrackingError) as refusal, reached(tmp_path):
        pass
    warn(f"lost {SERVER}")
    said = f"{refusal.value} {capsys.readouterr()} {reason(OSError(SERVER))} {_mlflow_state(tmp_path)}"
    page = Store(None, SERVER, "1", "compress").run_page("run")  # type: ignore[arg-type]
    assert SECRET not in f"{said} {page}"
    assert said.count("***@127.0.0.1:9") == 5


def test_no_file_of_a_project_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Runs of real stages on a server that is away: spooled events, cards, results, logs."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.delenv("COMPRESS_TRACKING", raising=False)
    root = make_project(tmp_path)
    prepare.run(root)
    teacher.run(root)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert any("mlflow_spool" in str(path) for path in files), "the events wait"
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    printed = capfd.readouterr()
    assert "events wait" in printed.err
    assert SECRET not in printed.out + printed.err


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_command_line_hides_them_in_errors_and_tracebacks(tmp_path: Path, flags: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "COMPRESS_TRACKING"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "-C", str(make_project(tmp_path)), *flags, "sync"],
        capture_output=True, text=True, check=False, env=environment | {"MLFLOW_TRACKING_URI": SERVER},
    )  # fmt: skip
    assert done.returncode == 1
    assert "***@127.0.0.1:9" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == bool(flags)
