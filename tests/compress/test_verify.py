"""A deploy folder is served or shipped only if it is whole, says what it is, and answers as it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compress.deploy_manifest import write_manifest
from compress.errors import ArtifactError
from compress.verify import verify_deploy, write_golden
from tests.compress.bare_packages import link_packages
from tests.compress.deployed_student import write_folder
from tests.compress.onnx_files import CLASSES, SIZE, colour_logits, colour_model, random_images

ROOT = Path(__file__).parents[2]
PREPROCESSING = {"height": SIZE[0], "width": SIZE[1]}


def write_model(path: Path, model: onnx.ModelProto, **metadata: object) -> Path:
    told = {"classes": CLASSES, "preprocessing": PREPROCESSING, "name": "colours", **metadata}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "deploy", write_model(tmp_path / "model.onnx", colour_model()), classes=CLASSES, size=SIZE
    )


def test_folder_as_it_was_written_passes(folder: Path) -> None:
    verified = verify_deploy(folder)
    assert verified.classes == CLASSES
    assert verified.image_size == SIZE
    assert verified.metadata["name"] == "colours"
    assert verified.num_golden == 3
    assert verified.relative_error <= 1e-6
    assert not verified.answers_depend_on_batch


def test_session_runs_what_was_checked_even_if_the_file_changes_later(folder: Path) -> None:
    verified = verify_deploy(folder)
    (folder / "model.onnx").write_bytes(b"other")
    images = random_images(2)
    (logits,) = verified.session.run(["logits"], {"image": images})
    np.testing.assert_allclose(logits, colour_logits(images), atol=1e-4)


def refusal(folder: Path) -> str:
    """Of a folder whose manifest fits, so that nothing but its content is wrong."""
    write_manifest(folder)
    with pytest.raises(ArtifactError) as caught:
        verify_deploy(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_changed_byte_is_refused(folder: Path) -> None:
    for name in ("model.onnx", "labels.json", "golden/images.npy", "golden/logits.npy", "golden/golden.json"):
        content = (folder / name).read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        (folder / name).write_bytes(changed)
        with pytest.raises(ArtifactError, match=f"{name} was changed"):
            verify_deploy(folder)
        (folder / name).write_bytes(content)
    verify_deploy(folder)


def test_model_that_answers_differently_is_refused(folder: Path) -> None:
    write_model(folder / "model.onnx", colour_model(weight=1.001))
    assert "answers differently on this machine: a golden logit is off by 0.001 of the largest" in refusal(folder)


def test_tolerance_is_the_one_that_was_written(folder: Path) -> None:
    images = np.load(folder / "golden" / "images.npy")
    write_golden(folder, images, colour_logits(images), tolerance=0.01)
    write_model(folder / "model.onnx", colour_model(weight=1.001))
    write_manifest(folder)
    assert 0.0009 < verify_deploy(folder).relative_error < 0.0011
    write_model(folder / "model.onnx", colour_model(weight=1.02))
    assert "allowed is 0.01" in refusal(folder)


def batch_dependent_model() -> onnx.ModelProto:
    """Scales by the largest value of the whole batch, as dynamic quantisation does."""
    model = colour_model()
    nodes = model.graph.node
    nodes[-1].output[0] = "unscaled"
    nodes.append(helper.make_node("ReduceMax", ["unscaled"], ["largest"], keepdims=0))
    nodes.append(helper.make_node("Div", ["unscaled", "largest"], ["logits"]))
    return model


def test_model_whose_answers_depend_on_the_batch_is_found_out(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.onnx", batch_dependent_model())
    assert verify_deploy(write_folder(tmp_path / "deploy", model, classes=CLASSES, size=SIZE)).answers_depend_on_batch


def model_with_nan() -> onnx.ModelProto:
    model = colour_model()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(np.nan, dtype=np.float32), "weight"))
    return model


def fixed_batch_model() -> onnx.ModelProto:
    model = colour_model()
    shape = numpy_helper.from_array(np.array([1, 3], dtype=np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node[-1].output[0] = "free"
    model.graph.node.append(helper.make_node("Reshape", ["free", "shape"], ["logits"]))
    return model


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels": (lambda folder: (folder / "labels.json").write_text('["red", "blue", "green"]'), "other class names"),
    "labels no json": (lambda folder: (folder / "labels.json").write_text("red"), "labels.json is damaged: no JSON"),
    "classes": (
        lambda folder: write_model(folder / "model.onnx", colour_model(), classes=["red"]),
        "has 3 logits, and its metadata has the classes ['red']",
    ),
    "no preprocessing": (
        lambda folder: write_model(folder / "model.onnx", colour_model(), preprocessing=None),
        "takes images of 4 x 6 px, and its metadata tells how to make others (preprocessing: None)",
    ),
    "other preprocessing": (
        lambda folder: write_model(folder / "model.onnx", colour_model(), preprocessing={"height": 6, "width": 4}),
        "tells how to make others",
    ),
    "no model": (lambda folder: (folder / "model.onnx").write_bytes(b"nothing"), "ONNX Runtime refuses it"),
    "nan": (lambda folder: write_model(folder / "model.onnx", model_with_nan()), "with NaN or infinity"),
    "fixed batch": (
        lambda folder: write_model(folder / "model.onnx", fixed_batch_model()),
        "does not take the golden images",
    ),
    "golden size": (
        lambda folder: np.save(folder / "golden" / "images.npy", random_images(3, (6, 4))),
        "does not take the golden images",
    ),
    "golden kind": (
        lambda folder: np.save(folder / "golden" / "images.npy", random_images(3).astype(np.float32)),
        "are no images and their answers",
    ),
    "golden number": (
        lambda folder: np.save(folder / "golden" / "images.npy", random_images(2)),
        "are no images and their answers",
    ),
    "golden classes": (
        lambda folder: np.save(folder / "golden" / "logits.npy", np.zeros((3, 4), np.float32)),
        "answers with (3, 3), the golden logits are (3, 4)",
    ),
    "golden no array": (lambda folder: (folder / "golden" / "logits.npy").write_bytes(b"x"), "is damaged: no array"),
    "golden pickle": (
        lambda folder: np.save(folder / "golden" / "logits.npy", np.array([{}]), allow_pickle=True),
        "is damaged: no array",
    ),
    "tolerance": (
        lambda folder: (folder / "golden" / "golden.json").write_text('{"tolerance": 5.0}'),
        "has no tolerance between 0 and 1",
    ),
    "no golden": (lambda folder: (folder / "golden" / "logits.npy").unlink(), "golden/logits.npy is missing"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_folder_that_contradicts_itself_is_refused(folder: Path, wrong: str) -> None:
    change, told = WRONG[wrong]
    change(folder)
    assert told in refusal(folder)


@pytest.mark.parametrize(
    ("images", "logits", "tolerance"),
    [
        (random_images(0), np.zeros((0, 3), np.float32), 1e-4),
        (random_images(2), np.zeros((1, 3), np.float32), 1e-4),
        (random_images(2), np.full((2, 3), np.nan, np.float32), 1e-4),
        (random_images(2), np.zeros((2, 3), np.float32), 0.0),
    ],
)
def test_golden_answers_that_could_not_be_checked_are_not_written(
    tmp_path: Path, images: np.ndarray, logits: np.ndarray, tolerance: float
) -> None:
    with pytest.raises(ValueError, match=r"golden|tolerance"):
        write_golden(tmp_path, images, logits, tolerance=tolerance)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds onnxruntime, numpy, this library and nothing else."""
    folder = link_packages(tmp_path_factory.mktemp("packages"))
    (folder / "compress").symlink_to(ROOT / "compress")
    return folder


def run_bare(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python without site-packages."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "compress.verify", *arguments],
        cwd=packages.parent,
        env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )


def test_command_runs_where_there_is_only_onnxruntime_and_numpy(folder: Path, bare_packages: Path) -> None:
    done = run_bare(bare_packages, str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder} is as it was written: model ")
    assert "3 classes, 3 golden images within" in done.stdout


def test_command_refuses_a_changed_folder_in_one_line(folder: Path, bare_packages: Path) -> None:
    (folder / "labels.json").write_text('["red", "green", "Blue"]')
    done = run_bare(bare_packages, str(folder), "--manifest-sha256", "0" * 64)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("compress: ")
    assert done.stderr.count("\n") == 1
