"""Starting a client, and judging its answers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compress.export import ExportSettings
from compress.runtime import load_predictor
from compress.verify import GOLDEN_LOGITS
from tests.clients.students import FLOAT32

HERE = Path(__file__).parent
PROGRAMS, NODE = HERE / "programs", HERE / "node"
SAME = 1e-5
"""Of the largest logit: what float32 rounding in another order makes, and less than one step of any 8-bit form."""


class MissingError(Exception):
    """A client cannot be tried here; the text says why."""


class Verdict(NamedTuple):
    """How one client fared with one form."""

    form: str
    error: str | None
    """What it said, or how it died."""
    from_golden: float = float("nan")
    """Largest difference to the golden logits (float32, prepared with Pillow), as a fraction of the largest."""
    from_onnxruntime: float = float("nan")
    """The same to what the current ONNX Runtime answers with the same file."""

    @property
    def passes(self) -> bool:
        """Answered as the current ONNX Runtime does, and as the student does to within the form's precision."""
        near_golden = self.from_golden <= golden_tolerance(self.form)
        return self.error is None and near_golden and self.from_onnxruntime <= client_tolerance(self.form)

    @property
    def in_words(self) -> str:
        """For a cell of a table."""
        if self.error is not None:
            return "**refused**" if "process ended" not in self.error else "**crashed**"
        if not self.passes:
            return f"**wrong** ({max(self.from_golden, self.from_onnxruntime):.2g})"
        return "yes" if self.from_onnxruntime <= SAME else f"yes ({self.from_onnxruntime:.0e})"


class Result(NamedTuple):
    """One client with one student."""

    version: str
    verdicts: dict[str, Verdict]


def golden_tolerance(form: str) -> float:
    """Distance from the student itself; pictures of any size come out a grey level apart here and there."""
    settings = ExportSettings()
    return settings.tolerance_of(form) + (0.02 if form.endswith("any_size") else 0.0)


def client_tolerance(form: str) -> float:
    """Distance from another runtime with the same file: 8-bit steps are rounded differently, and half precision."""
    if form.startswith("float32"):
        return ExportSettings().tolerance
    return 0.02 if "float16" in form else 0.1


def python_client(program: str, folder: Path, *, python: str = sys.executable) -> Result:
    """Run one of `programs/`."""
    return _judged(folder, [python, str(PROGRAMS / f"{program}_program.py"), str(folder)])


def node_client(script: str, folder: Path, *, installed: Path, extra: Sequence[str] = ()) -> Result:
    """Run one of `node/` where its packages are installed."""
    return _judged(folder, [executable("node"), str(installed / script), str(folder), *extra])


def serve_client(folder: Path, *, installed: Path) -> Result:
    """Ask a running `compress serve` from Node, by JSON and by raw tensors."""
    golden = np.load(folder / "deploy" / GOLDEN_LOGITS)
    name = str(load_predictor(folder / "deploy" / "model.onnx").metadata["name"])
    with _server(folder / "deploy") as url:
        told = _run([executable("node"), str(installed / "serve_client.mjs"), url, str(folder), name])
    assert told is not None, "Node ended without an answer"
    verdicts = {way: _verdict(way, FLOAT32, told, golden, golden) for way in ("json", "binary")}
    return Result(told["version"], verdicts)


def install_node_packages(work: Path) -> Path:
    """A folder with the scripts and the packages that the lock file pins.

    Raises:
        MissingError: Node or npm is not there, or the registry cannot be reached.
    """
    executable("node")
    installed = work / "node"
    installed.mkdir(parents=True, exist_ok=True)
    for file in NODE.iterdir():
        if file.is_file():
            shutil.copyfile(file, installed / file.name)
    if not (installed / "node_modules").is_dir():
        # Its own install script downloads CUDA libraries and fails where it cannot.
        surroundings = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        command = [executable("npm"), "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=installed, env=surroundings, capture_output=True, text=True)
        if done.returncode:
            raise MissingError(f"npm ci failed: {done.stderr.strip().splitlines()[-1:]}")
    return installed


def python_with_onnxruntime(work: Path, version: str) -> str:
    """A Python that has one version of ONNX Runtime and numpy, made on first use.

    Raises:
        MissingError: it cannot be installed here.
    """
    folder = work / f"onnxruntime_{version}"
    python = folder / "bin" / "python"
    if not python.is_file():
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", f"onnxruntime=={version}", "numpy>=2,<3"],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                raise MissingError(
                    f"onnxruntime {version} cannot be installed: {done.stderr.strip().splitlines()[-1:]}"
                )
    return str(python)


def executable(name: str) -> str:
    """Its path.

    Raises:
        MissingError: it is not on the PATH.
    """
    path = shutil.which(name)
    if path is None:
        raise MissingError(f"{name} is not installed")
    return path


def _judged(folder: Path, command: Sequence[str]) -> Result:
    forms: list[str] = list(json.loads((folder / "forms.json").read_text()))
    told = _run(command)
    if told is None:  # a form ended the process: find out which
        told = {"version": "", "answers": {}, "errors": {}}
        for form in forms:
            alone = _run([*command, form])
            if alone is None:
                told["errors"][form] = "the process ended"
                continue
            told["version"] = alone["version"]
            told["answers"] |= alone["answers"]
            told["errors"] |= alone["errors"]
    verdicts = {form: _verdict(form, form, told, *_expected(folder, form)) for form in forms}
    return Result(told["version"], verdicts)


def _expected(folder: Path, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Golden logits, and what the current ONNX Runtime gives; the latter asked once and kept."""
    any_size = form.endswith("any_size")
    golden = np.load(folder / ("golden_any_size.npy" if any_size else f"deploy/{GOLDEN_LOGITS}"))
    path = folder / "current_onnxruntime.json"
    if not path.is_file():
        told = _run([sys.executable, str(PROGRAMS / "onnxruntime_program.py"), str(folder)])
        assert told is not None, "ONNX Runtime ended without an answer"
        assert not told["errors"], told["errors"]
        path.write_text(json.dumps(told["answers"]))
    return golden, np.array(json.loads(path.read_text())[form]["32"])


def _verdict(name: str, form: str, told: dict[str, Any], golden: np.ndarray, current: np.ndarray) -> Verdict:
    if name in told["errors"]:
        return Verdict(form, told["errors"][name])
    answers = {int(size): np.array(logits) for size, logits in told["answers"][name].items()}
    depends_on_batch = form == "int8_dynamic"  # by construction: ranges are taken from the batch
    compared = {size: each for size, each in answers.items() if size == len(golden) or not depends_on_batch}
    scale = float(np.abs(golden).max())
    return Verdict(form, None, *(_largest(compared, expected) / scale for expected in (golden, current)))


def _largest(answers: dict[int, np.ndarray], expected: np.ndarray) -> float:
    differences = [np.abs(logits - expected[:size]) for size, logits in answers.items()]
    return max(float(np.nan_to_num(each, nan=np.inf).max()) for each in differences)


def _run(command: Sequence[str]) -> dict[str, Any] | None:
    """What a client told; None where its process ended without telling."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0 or not lines:
        if done.returncode > 0:
            raise RuntimeError(f"{command[1]} failed: {done.stderr.strip()[-500:]}")
        return None
    return json.loads(lines[-1])


@contextmanager
def _server(deploy: Path) -> Generator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "pipelines", "serve", str(deploy), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {process.communicate()[1].strip()[-500:]}")
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("the server did not become ready in a minute")
