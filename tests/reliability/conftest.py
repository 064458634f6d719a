"""The finished project that the tests of this folder copy and break."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.reliability.small_project import PIPELINE, new_project, run


@pytest.fixture(scope="module", autouse=True)
def tracking_off() -> Generator[None]:
    """Tracking has tests of its own."""
    os.environ["COMPRESS_TRACKING"] = "off"
    yield
    del os.environ["COMPRESS_TRACKING"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The project as it is before each stage, and after the last one under `""`."""
    folder = tmp_path_factory.mktemp("stages")
    root = new_project(folder / "project")
    copies: dict[str, Path] = {}
    for number, stage in enumerate([*PIPELINE, ""]):
        copies[stage] = Path(shutil.copytree(root, folder / str(number)))
        if stage:
            run(root, stage)
    return copies


@pytest.fixture(scope="module")
def finished(before: dict[str, Path]) -> Path:
    """Every stage has run."""
    return before[""]
