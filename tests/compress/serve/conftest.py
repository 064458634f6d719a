"""One exported student and one running server for the tests that share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compress.deployed_student import export_student, write_folder
from tests.compress.serve.packages import pytest_pycollect_makemodule as pytest_pycollect_makemodule

if TYPE_CHECKING:  # without the server's packages this file must still be importable
    from compress.serve import ServedModel
    from tests.compress.serve.running import RunningServer


@pytest.fixture(scope="session")
def student_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_student(tmp_path_factory.mktemp("export") / "float32.onnx")


@pytest.fixture(scope="session")
def deployed(student_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deploy folder; tests do not change it."""
    return write_folder(tmp_path_factory.mktemp("deployed") / "deploy", student_file)


@pytest.fixture(scope="session")
def model(deployed: Path) -> ServedModel:
    from compress.serve import ServeSettings, load_served_model

    return load_served_model(ServeSettings(folder=deployed))


@pytest.fixture(scope="session")
def server(deployed: Path, model: ServedModel) -> Iterator[RunningServer]:
    """A server with the usual limits that is up for the whole session."""
    from compress.serve import ServeSettings
    from tests.compress.serve.running import RunningServer

    with RunningServer(model, ServeSettings(folder=deployed)) as running:
        yield running
