"""The `compress` command: help at once, one clear line and exit code 1 for what a user can put right."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipelines.__main__ import app
from tests.pipelines.project import make_project, params, write_images, write_params

ROOT = Path(__file__).parents[2]
COMMANDS = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]  # type: ignore[union-attr]
STAGES = ("prepare", "teacher", "teacher-logits", "distill", "export", "evaluate", "select")


def compress(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COMPRESS_TRACKING": "off", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments],
        cwd=root, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1 and a single line on standard error that holds all the words."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("tracking:")]
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("compress: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_in_its_help(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert f"compress {command}" in shown.output


@pytest.mark.parametrize("command", STAGES)
def test_every_stage_states_its_inputs_and_outputs(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "Input" in shown
    assert "Output" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_docs(command: str) -> None:
    text = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert f"compress {command}" in text


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['compress', '--help']\n"
        "from pipelines.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'onnx', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    done = compress(tmp_path, "prepair")
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = compress(tmp_path, "--debug", "prepare")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def test_a_project_elsewhere_is_worked_on_with_its_own_relative_paths(project: Path, tmp_path: Path) -> None:
    edit(project, data={"source": {"name": "image_folder", "path": "pictures"}})
    (tmp_path / "elsewhere").mkdir()
    done = compress(tmp_path / "elsewhere", "-C", str(project), "prepare")
    assert done.returncode == 0, done.stderr
    assert (project / "data" / "prepared" / "manifest.json").is_file()


def edit(root: Path, **sections: Any) -> None:
    values = params(root / "pictures")
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    write_params(root, values)


def test_a_missing_image_folder(project: Path) -> None:
    edit(project, data={"source": {"name": "image_folder", "path": "nowhere"}})
    assert_one_line(compress(project, "prepare"), "nowhere", "correct the path")


def test_an_empty_class(project: Path) -> None:
    (project / "pictures" / "empty").mkdir()
    assert_one_line(compress(project, "prepare"), "empty")


def test_one_class_only(project: Path) -> None:
    shutil.rmtree(project / "pictures" / "green")
    shutil.rmtree(project / "pictures" / "blue")
    assert_one_line(compress(project, "prepare"), "class")


def test_a_truncated_jpeg(project: Path) -> None:
    from PIL import Image

    path = project / "pictures" / "red" / "cut.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes()[:300])
    assert_one_line(compress(project, "prepare"), "cut.jpg", "max_skipped_fraction")


def test_a_text_file_named_png(project: Path) -> None:
    (project / "pictures" / "red" / "notes.png").write_text("not a picture")
    assert_one_line(compress(project, "prepare"), "notes.png", "max_skipped_fraction")


def test_unreadable_files_within_the_limit_are_listed_and_skipped(project: Path) -> None:
    (project / "pictures" / "red" / "notes.png").write_text("not a picture")
    edit(project, data={"max_skipped_fraction": 0.1})
    done = compress(project, "prepare")
    assert done.returncode == 0
    assert "skipped red/notes.png" in done.stderr


def test_an_unknown_model(project: Path) -> None:
    edit(project, teacher={"model": {"source": "cifar", "name": "resnet9"}})
    assert compress(project, "prepare").returncode == 0
    assert_one_line(compress(project, "teacher"), "teacher.model.name", "'resnet9'", "resnet8")


def test_an_unknown_timm_model(project: Path) -> None:
    edit(project, teacher={"model": {"source": "timm", "name": "resnet18x"}})
    assert compress(project, "prepare").returncode == 0
    assert_one_line(compress(project, "teacher"), "'resnet18x'", "resnet18")


def test_an_unknown_method_and_a_bad_number(project: Path) -> None:
    values = params(project / "pictures")
    values["students"]["distilled"]["with_kd"]["method"] = {"name": "kdd"}
    values["students"]["distilled"]["with_nkd"]["method"]["temperature"] = 0
    write_params(project, values)
    done = compress(project, "distill", "with_kd")
    assert_one_line(done, "with_kd.method.name: unknown 'kdd'; did you mean 'kd'?", "with_nkd.method.temperature")


def test_an_unknown_key(project: Path) -> None:
    edit(project, data={"validation_split": 0.1})
    assert_one_line(
        compress(project, "prepare"), "data.validation_split: unknown key; did you mean 'validation_fraction'"
    )


def test_an_unknown_student(project: Path) -> None:
    compress(project, "prepare")
    assert_one_line(compress(project, "distill", "withkd"), "no student 'withkd'", "with_kd, with_nkd, alone")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_where_there_is_none(project: Path) -> None:
    values = params(project / "pictures")
    values["teacher"]["train"] = {**values["teacher"]["train"], "device": "cuda"}
    write_params(project, values)
    assert compress(project, "prepare").returncode == 0
    assert_one_line(compress(project, "teacher"), "'cuda'", "device: auto or cpu")


def test_an_output_folder_that_cannot_be_written(project: Path) -> None:
    """A file where the folder should be: root, as in a container, may write into read-only folders."""
    (project / "data").write_text("in the way")
    assert_one_line(compress(project, "prepare"), str(project / "data"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_output_folder(project: Path) -> None:
    project.chmod(0o555)
    try:
        assert_one_line(compress(project, "prepare"), "denied")
    finally:
        project.chmod(0o755)


def test_params_that_are_missing(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    assert_one_line(compress(tmp_path, "prepare"), "params.yaml", "pipelines/recipes/")


def test_interrupting_a_stage_ends_with_130_and_a_way_on(project: Path) -> None:
    values = params(project / "pictures")
    values["teacher"]["train"] = {**values["teacher"]["train"], "epochs": 100000}
    write_params(project, values)
    assert compress(project, "prepare").returncode == 0
    environment = os.environ | {"COMPRESS_TRACKING": "off", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "teacher"],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    while "epoch 2/" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(2)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; run the same command again to go on" in errors


def test_doctor_names_what_is_wrong_with_params(project: Path) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump({"data": {"source": {"name": "digit"}}}))
    done = compress(project, "doctor")
    assert done.returncode == 1
    assert "did you mean 'digits'" in " ".join(done.stdout.split())


def test_the_command_of_the_readme_is_there_after_make(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("compress")
    if command.parent != ROOT / ".venv" / "bin":
        pytest.skip("this environment was not made by make")
    done = subprocess.run([command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "measured ONNX" in " ".join(done.stdout.split())
