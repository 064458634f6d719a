"""The deploy folder works by itself, says what it is, and is never half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.deploy import DeployOptions, find_float_source, write_deploy_folder
from compress.errors import ArtifactError, ParityError
from compress.export.float_forms import as_float_entry
from compress.load_record import LoadRecord
from compress.model_card import DeployFacts, TeacherFacts
from compress.quantize import Int8Static
from compress.triton import check_repository
from compress.verify import verify_deploy
from tests.compress.bare_packages import link_packages
from tests.compress.deployed_student import export_student
from tests.compress.load_records import RECORD
from tests.compress.onnx_files import CLASSES, SIZE, colour_logits, colour_model, random_images, write_colour_model

FACTS = DeployFacts(
    name="small_wttm",
    reason="most accurate on validation",
    architecture={"source": "cnn", "channels": [8, 16, 32]},
    method="wttm",
    num_parameters=6000,
    flops=123456,
    accuracy_validation=0.9625,
    accuracy_test=0.95,
    num_images_test=450,
    latency_ms=0.0711,
    machine="AMD EPYC, 1 thread, onnxruntime 1.31.1",
    data="scikit-learn's handwritten digits, 1,797 images",
    preprocessing={"height": 4, "width": 6, "resize": {"shorter_side": 5, "interpolation": "bilinear"}},
    teacher=TeacherFacts(
        architecture={"source": "cifar", "name": "resnet20"}, accuracy_test=0.98, latency_ms=0.52, size_bytes=1100000
    ),
    metrics={"expected_calibration_error": 0.0321},
    lineage={"teacher": "ab" * 32, "prepared_data": "cd" * 32},
)
NAMES = {
    "model.onnx",
    "labels.json",
    "model_card.md",
    "predict.py",
    "golden",
    "sbom.cdx.json",
    "SHA256SUMS",
    "manifest.json",
}


def red_and_blue() -> np.ndarray:
    """Two images whose main colour is known."""
    images = np.zeros((2, *SIZE, 3), dtype=np.uint8)
    images[0, ..., 0], images[1, ..., 2] = 2, 1
    return images


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return write_colour_model(tmp_path / "float32.onnx")


@pytest.fixture
def deployed(tmp_path: Path, exported: Path) -> Path:
    write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=FACTS, example_images=red_and_blue())
    return tmp_path / "deploy"


@pytest.fixture(scope="module")
def bare_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds onnxruntime, numpy and nothing else."""
    return link_packages(tmp_path_factory.mktemp("packages"))


def run_bare(packages: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python without site-packages, in `folder`."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )


def test_folder_holds_exactly_what_it_promises(deployed: Path, exported: Path) -> None:
    assert {entry.name for entry in deployed.iterdir()} == NAMES
    assert (deployed / "model.onnx").read_bytes() == exported.read_bytes()
    assert json.loads((deployed / "labels.json").read_text()) == list(CLASSES)
    assert {entry.name for entry in deployed.parent.iterdir()} == {"deploy", "float32.onnx"}, (
        "nothing is left beside it"
    )


def test_anybody_may_read_the_folder(deployed: Path) -> None:
    assert deployed.stat().st_mode & 0o055 == 0o055
    assert all(entry.stat().st_mode & 0o044 == 0o044 for entry in deployed.iterdir())


def test_checksums_hold_and_notice_a_change(deployed: Path) -> None:
    lines = (deployed / "SHA256SUMS").read_text().splitlines()
    assert dict(line.split("  ")[::-1] for line in lines) == {
        path.relative_to(deployed).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in deployed.rglob("*")
        if path.is_file() and path.name not in ("SHA256SUMS", "manifest.json")
    }
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum here")
    assert subprocess.run([tool, "-c", "SHA256SUMS"], cwd=deployed, capture_output=True).returncode == 0
    (deployed / "labels.json").write_text("[]")
    assert subprocess.run([tool, "-c", "SHA256SUMS"], cwd=deployed, capture_output=True).returncode == 1


def test_script_runs_where_there_is_only_onnxruntime_and_numpy(
    deployed: Path, bare_packages: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    deployed.rename(elsewhere / "deploy")
    missing = (
        "import importlib.util as u; print([n for n in ('torch onnx PIL compress pydantic').split() if u.find_spec(n)])"
    )
    assert run_bare(bare_packages, "-c", missing, folder=elsewhere).stdout.strip() == "[]"
    done = run_bare(bare_packages, "deploy/predict.py", folder=elsewhere)
    assert done.returncode == 0, done.stderr
    # softmax of (2, 0, 0) and of (0, 0, 1)
    assert done.stdout.splitlines() == ["red 0.787", "blue 0.576"]
    assert done.stderr == ""


def test_script_classifies_a_file_of_images(deployed: Path, bare_packages: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", red_and_blue()[[1, 1, 0]])
    done = run_bare(bare_packages, "predict.py", str(tmp_path / "mine.npy"), folder=deployed)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["blue", "blue", "red"]


def test_script_is_five_lines_besides_its_imports(deployed: Path) -> None:
    lines = (deployed / "predict.py").read_text().splitlines()
    code = [line for line in lines if line and not line.startswith(('"""', "import", "folder ="))]
    assert len([line for line in code if not line.startswith(" ")]) == 5


def test_examples_come_with_the_answers_of_the_file_itself(deployed: Path) -> None:
    images = np.load(deployed / "golden" / "images.npy")
    np.testing.assert_array_equal(images, red_and_blue())
    logits = np.load(deployed / "golden" / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, colour_logits(images), rtol=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        "# small_wttm",
        "source=cnn, channels=[8, 16, 32]",
        "`wttm`",
        "| top-1 accuracy on test | 95.00% | 98.00% |",
        "| top-1 accuracy on validation | 96.25% |",
        "| latency, one image, median, ms | 0.071 | 0.520 |",
        "| expected_calibration_error | 0.0321 |",
        "standard error 1.03%",
        "AMD EPYC, 1 thread, onnxruntime 1.31.1",
        "1,797 images",
        "(batch, 4, 6, 3)",
        "- resize: shorter side 5, interpolation bilinear",
        "`red`, `green`, `blue`",
        "source=cifar, name=resnet20",
        "SHA-256 of prepared data: `cdcd",
        "## Intended use and limits",
    ],
)
def test_card_tells(deployed: Path, told: str) -> None:
    assert told in (deployed / "model_card.md").read_text()


def test_card_tells_what_was_not_measured(tmp_path: Path, exported: Path) -> None:
    unmeasured = dict.fromkeys(("accuracy_validation", "accuracy_test", "latency_ms", "machine", "teacher"))
    facts = FACTS.model_copy(update={**unmeasured, "metrics": {}})
    write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=facts, example_images=red_and_blue())
    card = (tmp_path / "deploy" / "model_card.md").read_text()
    assert "| top-1 accuracy on test | not measured |" in card
    assert "Nothing was measured on this file." in card


def test_card_names_a_teacher_only_of_what_learnt_from_it(tmp_path: Path, exported: Path) -> None:
    facts = FACTS.model_copy(update={"lineage": {"prepared_data": "cd" * 32}})
    write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=facts, example_images=red_and_blue())
    card = (tmp_path / "deploy" / "model_card.md").read_text()
    assert "- teacher: none; measured beside `source=cifar, name=resnet20`" in card


def test_load_test_of_this_file_stands_in_the_card(tmp_path: Path, exported: Path) -> None:
    serving = LoadRecord.model_validate({**RECORD, "model_sha256": hashlib.sha256(exported.read_bytes()).hexdigest()})
    facts = FACTS.model_copy(update={"serving": serving})
    write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=facts, example_images=red_and_blue())
    card = (tmp_path / "deploy" / "model_card.md").read_text()
    assert "\n## Serving\n\n| request |" in card
    assert "150.3" in card
    files = json.loads((tmp_path / "deploy" / "manifest.json").read_text())["files"]
    assert files["model_card.md"]["sha256"] == hashlib.sha256(card.encode()).hexdigest()


def test_load_test_of_another_file_is_refused(tmp_path: Path, exported: Path) -> None:
    facts = FACTS.model_copy(update={"serving": LoadRecord.model_validate(RECORD)})
    with pytest.raises(ArtifactError, match=r"made with another model \(abababababab\), this one is "):
        write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=facts, example_images=red_and_blue())
    assert not (tmp_path / "deploy").exists()


def test_card_without_a_load_test_has_no_such_section(deployed: Path) -> None:
    assert "## Serving" not in (deployed / "model_card.md").read_text()


def test_licence_is_the_one_in_the_file(tmp_path: Path) -> None:
    model = colour_model()
    model.metadata_props.add(key="license", value='"MIT"')
    onnx.save(model, tmp_path / "model.onnx")
    write_deploy_folder(
        tmp_path / "deploy", onnx_path=tmp_path / "model.onnx", facts=FACTS, example_images=red_and_blue()
    )
    assert "- licence: MIT" in (tmp_path / "deploy" / "model_card.md").read_text()
    bill = json.loads((tmp_path / "deploy" / "sbom.cdx.json").read_text())
    assert bill["components"][0]["licenses"] == [{"expression": "MIT"}]


def test_bill_of_materials_names_every_file_before_it(deployed: Path) -> None:
    bill = json.loads((deployed / "sbom.cdx.json").read_text())
    digests = {each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"}
    written_later = {"sbom.cdx.json", "SHA256SUMS", "manifest.json", "model.onnx"}
    assert digests == {
        path.relative_to(deployed).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in deployed.rglob("*")
        if path.is_file() and path.name not in written_later
    }


@pytest.fixture(scope="module")
def exported_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of the project's own exporter and its 8-bit form."""
    folder = tmp_path_factory.mktemp("exported")
    export_student(folder / "float32.onnx")
    Int8Static()(folder / "float32.onnx", folder / "int8.onnx", calibration=[random_images(8, (24, 24))])
    return folder


def deploy_student(folder: Path, onnx_path: Path, **options: Any) -> Path:
    write_deploy_folder(
        folder,
        onnx_path=onnx_path,
        facts=FACTS,
        example_images=random_images(3, (24, 24)),
        options=DeployOptions(**options),
    )
    return folder


def test_float_form_takes_float_images_and_answers_the_same(exported_student: Path, tmp_path: Path) -> None:
    source = exported_student / "float32.onnx"
    assert find_float_source(source) == source
    folder = deploy_student(tmp_path / "deploy", source, float_source=source)
    session = onnxruntime.InferenceSession(folder / "model.float.onnx", providers=["CPUExecutionProvider"])
    images = np.load(folder / "golden" / "images.npy")
    floats = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    (logits,) = session.run(["logits"], {"image": floats})
    np.testing.assert_array_equal(logits, np.load(folder / "golden" / "float_logits.npy"))
    np.testing.assert_allclose(logits, np.load(folder / "golden" / "logits.npy"), atol=1e-5)
    assert verify_deploy(folder).relative_error <= 1e-6


def test_float_form_of_an_8_bit_file_is_made_of_its_float32_file(exported_student: Path, tmp_path: Path) -> None:
    source = find_float_source(exported_student / "int8.onnx")
    assert source == exported_student / "float32.onnx"
    folder = deploy_student(tmp_path / "deploy", exported_student / "int8.onnx", float_source=source)
    operators = {node.op_type for node in onnx.load(folder / "model.float.onnx").graph.node}
    assert "Conv" in operators
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}


def test_8_bit_file_alone_has_no_float_source(exported_student: Path, tmp_path: Path) -> None:
    shutil.copyfile(exported_student / "int8.onnx", tmp_path / "int8.onnx")
    assert find_float_source(tmp_path / "int8.onnx") is None


def test_8_bit_file_may_round_differently_elsewhere(exported_student: Path, tmp_path: Path) -> None:
    def tolerance(folder: Path) -> float:
        return json.loads((folder / "golden" / "golden.json").read_text())["tolerance"]

    assert tolerance(deploy_student(tmp_path / "a", exported_student / "float32.onnx")) == 1e-4
    assert tolerance(deploy_student(tmp_path / "b", exported_student / "int8.onnx")) == 0.02
    assert tolerance(deploy_student(tmp_path / "c", exported_student / "int8.onnx", tolerance=0.1)) == 0.1


def test_float_form_that_answers_otherwise_is_refused(
    exported_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brighter(images: np.ndarray) -> np.ndarray:
        return as_float_entry(images) * np.float32(1.01)

    monkeypatch.setattr("compress.export.float_forms.as_float_entry", brighter)
    with pytest.raises(ParityError, match=r"model\.float\.onnx is off by"):
        deploy_student(
            tmp_path / "deploy",
            exported_student / "float32.onnx",
            float_source=exported_student / "float32.onnx",
        )
    assert not (tmp_path / "deploy").exists()


def test_triton_repository_is_part_of_the_folder_on_request(exported_student: Path, tmp_path: Path) -> None:
    folder = deploy_student(tmp_path / "deploy", exported_student / "float32.onnx", triton=True)
    check_repository(folder / "triton", FACTS.name)
    assert (folder / "triton" / FACTS.name / "1" / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    verify_deploy(folder)
    (folder / "triton" / FACTS.name / "config.pbtxt").write_text("")
    with pytest.raises(ArtifactError, match=r"config\.pbtxt was changed"):
        verify_deploy(folder)


def test_card_has_the_hash_and_size_of_the_file(deployed: Path) -> None:
    content = (deployed / "model.onnx").read_bytes()
    card = (deployed / "model_card.md").read_text()
    assert hashlib.sha256(content).hexdigest() in card
    assert f"| file size, MB (1e6 bytes) | {len(content) / 1e6:.3f} | 1.100 |" in card


def test_class_names_cannot_break_the_card(tmp_path: Path) -> None:
    path = write_colour_model(tmp_path / "float32.onnx", classes=("a|b", "two\nlines", "grün"))
    write_deploy_folder(tmp_path / "deploy", onnx_path=path, facts=FACTS, example_images=red_and_blue())
    assert "`a\\|b`, `two lines`, `grün`" in (tmp_path / "deploy" / "model_card.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "deploy" / "labels.json").read_text())[1:] == ["two\nlines", "grün"]


def test_same_model_gives_the_same_bytes(deployed: Path, exported: Path, tmp_path: Path) -> None:
    write_deploy_folder(tmp_path / "again", onnx_path=exported, facts=FACTS, example_images=red_and_blue())
    for path in deployed.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(deployed)).read_bytes() == path.read_bytes()


def test_earlier_folder_is_replaced_as_a_whole(deployed: Path, tmp_path: Path) -> None:
    (deployed / "labels.json").chmod(0o444)  # DVC leaves its outputs read-only in some modes
    other = write_colour_model(tmp_path / "other.onnx", classes=("x", "y", "z"), weight=2.0)
    write_deploy_folder(deployed, onnx_path=other, facts=FACTS, example_images=random_images(1))
    assert {entry.name for entry in deployed.iterdir()} == NAMES
    assert (deployed / "model.onnx").read_bytes() == other.read_bytes()
    assert len(np.load(deployed / "golden" / "images.npy")) == 1


def test_failed_writer_leaves_the_earlier_folder_and_nothing_else(deployed: Path, tmp_path: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in deployed.rglob("*") if entry.is_file()}
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"damaged\.onnx is damaged"):
        write_deploy_folder(deployed, onnx_path=tmp_path / "damaged.onnx", facts=FACTS, example_images=red_and_blue())
    assert {entry.name: entry.read_bytes() for entry in deployed.rglob("*") if entry.is_file()} == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"deploy", "damaged.onnx", "float32.onnx"}


def test_what_a_killed_writer_left_is_cleared_up_by_the_next(exported: Path, tmp_path: Path) -> None:
    left = tmp_path / ".deploy.partial" / "new"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    folder = tmp_path / "deploy"
    write_deploy_folder(folder, onnx_path=exported, facts=FACTS, example_images=red_and_blue())
    assert {entry.name for entry in folder.iterdir()} == NAMES
    assert not left.parent.exists()


def test_folder_with_anything_else_in_it_is_not_touched(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds other files \(thesis\.tex\); move them or choose another"):
        write_deploy_folder(tmp_path / "home", onnx_path=exported, facts=FACTS, example_images=red_and_blue())
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deploy"):
        with pytest.raises(ArtifactError, match="choose a"):
            write_deploy_folder(folder, onnx_path=exported, facts=FACTS, example_images=red_and_blue())


def test_example_images_must_fit_the_file(tmp_path: Path, exported: Path) -> None:
    for images, match in ((random_images(2, (6, 4)), "expected uint8"), (random_images(0), "at least one")):
        with pytest.raises(ValueError, match=match):
            write_deploy_folder(tmp_path / "deploy", onnx_path=exported, facts=FACTS, example_images=images)
    assert not (tmp_path / "deploy").exists()
