"""One exported student in a deploy folder, with its float form."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.deploy_manifest import write_manifest
from compress.export.float_forms import write_float_entry
from tests.compress.deployed_student import export_student, write_folder
from tests.compress.serve.packages import pytest_pycollect_makemodule as pytest_pycollect_makemodule


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deploy folder; tests do not change it."""
    scratch = tmp_path_factory.mktemp("deployed")
    folder = write_folder(scratch / "deploy", export_student(scratch / "float32.onnx"))
    write_float_entry(folder / "model.onnx", folder / "model.float.onnx")
    write_manifest(folder)
    return folder
