"""One exported student in a deploy folder, with its float form."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from compress.deploy_manifest import write_manifest
from compress.export.float_forms import write_float_entry
from tests.compress.deployed_student import export_student, write_folder

MISSING = [
    name
    for name in ("starlette", "uvicorn", "python_multipart", "prometheus_client")
    if importlib.util.find_spec(name) is None
]


def pytest_pycollect_makemodule() -> None:
    """Skip every module here where the server's packages are not installed."""
    if MISSING:
        pytest.skip(f"the server needs {', '.join(MISSING)}", allow_module_level=True)


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deploy folder; tests do not change it."""
    scratch = tmp_path_factory.mktemp("deployed")
    folder = write_folder(scratch / "deploy", export_student(scratch / "float32.onnx"))
    write_float_entry(folder / "model.onnx", folder / "model.float.onnx")
    write_manifest(folder)
    return folder
