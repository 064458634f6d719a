"""Node and a browser, where `python -m tests.clients --work FOLDER` has installed their packages already."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.clients.drive import NODE, MissingError, executable, node_client, serve_client
from tests.clients.students import write_student

FOLDER = "COMPRESS_CLIENTS"


@pytest.fixture(scope="module")
def installed() -> Path:
    work = os.environ.get(FOLDER)
    if work is None:
        pytest.skip(
            f"set {FOLDER} to the folder in which `python -m tests.clients --work FOLDER` installed Node packages"
        )
    return Path(work) / "node_packages" / "node"


@pytest.fixture(scope="module")
def student(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients") / "convolutions"
    write_student(folder, "convolutions", num_epochs=2)
    return folder


def test_node_takes_every_form(student: Path, installed: Path) -> None:
    verdicts = node_client("node_client.mjs", student, installed=installed).verdicts
    assert [form for form, verdict in verdicts.items() if not verdict.passes] == []


def test_browser_takes_every_form(student: Path, installed: Path) -> None:
    try:
        chromium = executable("chromium")
    except MissingError as missing:
        pytest.skip(str(missing))
    verdicts = node_client("web_client.mjs", student, installed=installed, extra=[chromium]).verdicts
    assert [form for form, verdict in verdicts.items() if not verdict.passes] == []


def test_server_gives_node_the_golden_answers(student: Path, installed: Path) -> None:
    verdicts = serve_client(student, installed=installed).verdicts
    assert {way: verdict.from_golden for way, verdict in verdicts.items()} == {"json": 0.0, "binary": 0.0}


def test_lock_file_pins_what_the_package_file_asks_for_and_no_address() -> None:
    asked = json.loads((NODE / "package.json").read_text())["dependencies"]
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert all("integrity" in package for path, package in packages.items() if path)
    assert not any("resolved" in package for package in packages.values())
