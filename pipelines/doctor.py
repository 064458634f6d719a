"""What this machine has, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from pipelines.console import console
from pipelines.layout import Layout
from pipelines.redaction import redacted

REQUIRED = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "numpy", "pydantic", "typer")
OPTIONAL = {
    "dvc": "the pipeline: stages can still be run one by one",
    "mlflow": "tracking: off",
    "psutil": "system metrics: off",
    "scikit-learn": "the digits data set",
    "matplotlib": "the pictures in reports/",
}


def run(root: Path) -> None:
    """Print the state of everything the pipeline leans on; exit code 1 if something must be put right."""
    out, table = console(), Table("", "", "", box=None, show_header=False)
    findings = [*_packages(), *_machine(), *_project(root)]
    for what, state, problem in findings:
        table.add_row(what, state, f"[red]{problem}[/]" if problem else "")
    out.print(table)
    problems = [f"{what}: {problem}" for what, _, problem in findings if problem]
    out.print("everything is in order" if not problems else f"{len(problems)} to put right")
    if problems:
        sys.exit(1)


def _packages() -> Iterator[tuple[str, str, str]]:
    yield "python", platform.python_version(), "" if sys.version_info >= (3, 11) else "needs 3.11 or newer"
    for name in (*REQUIRED, *OPTIONAL):
        try:
            yield name, importlib.metadata.version(name), ""
        except importlib.metadata.PackageNotFoundError:
            missing = f"not installed; {OPTIONAL[name]}" if name in OPTIONAL else "not installed"
            yield name, missing, "" if name in OPTIONAL else "pip install it, or run make install"


def _machine() -> Iterator[tuple[str, str, str]]:
    import onnxruntime
    import torch

    from compress.device import cpu_has_bfloat16

    yield "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads", ""
    yield "cpu bfloat16", "native" if cpu_has_bfloat16() else "emulated; precision auto trains in float32", ""
    if torch.cuda.is_available():
        yield "gpu", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}", ""
    else:
        yield "gpu", "none that torch sees", ""
    yield "onnx runtime providers", ", ".join(onnxruntime.get_available_providers()), ""


def _project(root: Path) -> Iterator[tuple[str, str, str]]:
    layout = Layout(root)
    free = shutil.disk_usage(root).free
    yield "disk", f"{free / 1e9:.0f} GB free", "" if free > 2e9 else "less than 2 GB free"
    yield "params.yaml", "there" if layout.params.is_file() else "missing", _params_problem(layout)
    yield "dvc", *_dvc_state(root)
    yield "mlflow", *_mlflow_state(root)


def _params_problem(layout: Layout) -> str:
    from compress.errors import ParamsError
    from pipelines.params import load_params
    from pipelines.schema import AllParams

    try:
        load_params(AllParams, layout.params)
    except ParamsError as error:
        return str(error)
    return ""


def _dvc_state(root: Path) -> tuple[str, str]:
    if not (root / ".dvc").is_dir():
        return "no .dvc folder", "run dvc init, or dvc init --no-scm where there is no git"
    if shutil.which("dvc") is None:
        return "not on the path", "activate the environment: PATH=.venv/bin:$PATH"
    status = subprocess.run(["dvc", "status", "-q"], cwd=root, capture_output=True, text=True, check=False)
    if status.returncode not in (0, 1):
        return "unknown", " ".join(status.stderr.split()) or "dvc status failed"
    return "up to date" if status.returncode == 0 else "has stages to run: dvc repro", ""


def _mlflow_state(root: Path) -> tuple[str, str]:
    from pipelines.tracking import store_uri

    return redacted(store_uri(root)), ""
