"""A repository of its own with this checkout's code, in which real DVC runs the real stages."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.pipelines.project import make_project, write_params

ROOT = Path(__file__).parents[2]
QUIET = {"COMPRESS_TRACKING": "off", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


def environment() -> dict[str, str]:
    """This interpreter first on the path, as in an activated environment; tracking has tests of its own.

    /bin/sh, DVC's choice where SHELL is unset, stays between DVC and the stage unless told otherwise.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "COMPRESS", "DVC"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "SHELL": "/bin/sh", **QUIET}


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def reproduced(root: Path) -> set[str]:
    """Names of the stages that `dvc repro` really ran."""
    return set(re.findall(r"Running stage '([^']+)'", run(root, "dvc", "repro")))


def outdated(root: Path) -> set[str]:
    """Names of the stages that `dvc repro` would run because of what they themselves depend on."""
    return set(json.loads(run(root, "dvc", "status", "--json")))


def make_repository(root: Path, values: dict[str, Any]) -> Path:
    """A git repository with pictures, `values` as params.yaml, the code, and DVC set up; nothing has run."""
    make_project(root)
    write_params(root, values)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("compress", "pipelines"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local", "scm"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    run(root, "git", "init", "-q")
    return root
