"""Names of students reach a shell and paths that DVC empties: nothing but letters, digits and _ gets through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import ParamsError
from pipelines import prepare_names
from pipelines.layout import Layout
from tests.pipelines.dvc_repository import environment, make_repository
from tests.pipelines.project import make_project, params, write_params

HOSTILE = [
    *("x;touch pwned", "$(touch pwned)", "`touch pwned`", "x|touch pwned", "x>pwned"),
    *("../pictures", "/etc", "..", "", "--help"),
]
UNUSABLE = ["a b", "a\nb", "a.b", "a-b", "A", "ü", "*", "~", "${x}", "a/b", "a\\b", "'", '"']


def with_student(root: Path, name: str) -> None:
    values = params(root / "pictures")
    alone = values["students"]["teacher_free"]["alone"]
    write_params(root, values | {"teacher": None, "students": {"teacher_free": {name: alone}}})


@pytest.mark.parametrize("name", HOSTILE + UNUSABLE)
def test_name_is_refused_before_anything_is_made_of_it(tmp_path: Path, name: str) -> None:
    make_project(tmp_path)
    with_student(tmp_path, name)
    with pytest.raises(ParamsError, match=r"students\.teacher_free: .* cannot name a student"):
        prepare_names.run(tmp_path)
    assert not Layout(tmp_path).student_names.exists()


def test_note_is_the_same_for_all_harmless_names(tmp_path: Path) -> None:
    make_project(tmp_path)
    notes: set[bytes] = set()
    for name in ("alone", "resnet_20"):
        with_student(tmp_path, name)
        prepare_names.run(tmp_path)
        notes.add(Layout(tmp_path).student_names.read_bytes())
    assert len(notes) == 1, "another one would train every student again"


@pytest.mark.parametrize("name", ["$(touch pwned)", "x|touch pwned", "../../victim"])
def test_dvc_runs_and_deletes_nothing_for_a_hostile_name(tmp_path: Path, name: str) -> None:
    victims = [tmp_path / "victim", tmp_path / "repository" / "victim"]
    for victim in victims:
        victim.mkdir(parents=True)
        (victim / "precious").touch()
    root = tmp_path / "repository"
    values = params(root / "pictures")
    alone = values["students"]["teacher_free"]["alone"]
    make_repository(root, values | {"teacher": None, "students": {"teacher_free": {name: alone}}})
    done = subprocess.run(["dvc", "repro"], cwd=root, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode != 0
    assert not (root / "pwned").exists()
    assert all((victim / "precious").exists() for victim in victims)


@pytest.mark.parametrize("command", ["distill", "export", "evaluate"])
@pytest.mark.parametrize("name", ["../victim", "export@../victim"])
def test_commands_take_no_paths_for_names(tmp_path: Path, command: str, name: str) -> None:
    make_project(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "-C", str(tmp_path), command, name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot name a network; use lower-case letters" in done.stderr
