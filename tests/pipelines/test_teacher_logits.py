"""The stage says how exact its answers are, goes on where it was interrupted, and students check what they read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipelines.teacher_logits
from compress import store_plan
from compress.data.prepared import load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import resolve_device
from compress.errors import ArtifactError, ParamsError
from compress.logit_store import LOGITS, read_manifest
from compress.methods import ITRD, KD
from compress.models import Cnn
from compress.teacher_logits import StoredTeacher
from compress.training_state import TrainSettings
from pipelines import prepare, teacher, teacher_choice, teacher_logits, teacher_logits_plan
from pipelines.absence import is_absent, leave_note
from pipelines.finished_work import drop_store
from pipelines.layout import Layout
from pipelines.online_teacher import online_teacher
from pipelines.settings import ComposedStudent, DistilledStudent
from pipelines.stored_answers import stored_answers
from tests.pipelines.project import make_project, params, write_params

NUM_VIEWS = 2


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images are prepared and the teacher is trained."""
    root = make_project(tmp_path_factory.mktemp("taught"))
    change(root, {})
    prepare.run(root)
    teacher.run(root)
    return root


@pytest.fixture
def project(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught, tmp_path / "project")
    return tmp_path / "project"


def change(root: Path, teacher_logits_settings: dict[str, Any], **sections: Any) -> None:
    """Rewrite params.yaml with small chunks and these settings."""
    values = params(root / "pictures")
    values["teacher_logits"] |= {"rows_per_chunk": 16, "batch_size": 8} | teacher_logits_settings
    write_params(root, values | sections)


def read(root: Path) -> StoredTeacher:
    layout = Layout(root)
    data = load_prepared(layout.prepared)
    views = ViewSettings.model_validate(params(root / "pictures")["views"])
    return stored_answers(layout, data, views, device=resolve_device("cpu"))


def interrupt(root: Path, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Run the stage until it has stored some views."""
    write = pipelines.teacher_logits.write_chunks

    def interrupted(*arguments: Any, **options: Any) -> Iterator[int]:
        for num_done in write(*arguments, **options):
            yield num_done
            if num_done >= after:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipelines.teacher_logits, "write_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teacher_logits.run(root)


def test_the_stage_says_how_exact_its_answers_are(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(project, {"dtype": "uint8", "precision": "bfloat16"})
    teacher_logits.run(project)
    printed = capsys.readouterr().out
    manifest = read_manifest(Layout(project).teacher_logits)
    assert "bfloat16 teacher pass, 2 batch normalisations folded: largest logit difference" in printed
    assert f"from plain float32 {manifest.pass_error:.2g} on {manifest.num_pass_samples} samples" in printed
    assert f"largest error of a stored logit {manifest.max_abs_error:.2g}" in printed
    assert f"of a class probability {manifest.max_probability_error:.2g}" in printed


def test_an_interrupted_stage_goes_on_to_the_same_bytes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Layout(project).teacher_logits
    teacher_logits.run(project)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)  # as DVC does before it runs a stage again
    drop_store(Layout(project))  # as later stages do
    interrupt(project, monkeypatch, after=40)
    assert not folder.exists()
    capsys.readouterr()
    teacher_logits.run(project)
    assert "going on after 32 of" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert [path.name for path in (project / ".work" / "teacher_logits").iterdir()] == ["finished"]


def test_a_partial_store_of_other_settings_is_discarded_by_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(project, monkeypatch, after=20)
    change(project, {"dtype": "uint8"})
    teacher_logits.run(project)
    assert "is discarded: it has another dtype" in capsys.readouterr().out
    assert read_manifest(Layout(project).teacher_logits).dtype == "uint8"


def test_a_switched_off_store_needs_only_the_teachers_card(project: Path) -> None:
    (Layout(project).teacher / "weights.safetensors").unlink()
    change(project, {"enabled": False, "precision": "auto"})
    teacher_logits.run(project)
    manifest = read_manifest(Layout(project).teacher_logits)
    assert (manifest.enabled, manifest.precision) == (False, "auto")


def test_without_a_teacher_the_stage_leaves_a_note(project: Path) -> None:
    leave_note(Layout(project).teacher)
    teacher_logits.run(project)
    assert is_absent(Layout(project).teacher_logits)
    teacher_logits_plan.run(project)


def test_a_student_verifies_by_hash_and_by_asking(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_logits.run(project)
    capsys.readouterr()
    assert read(project).manifest.shape[0] == NUM_VIEWS
    assert "verified by hash and by asking the teacher again" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [("card.json",), ()], ids=["card", "nothing"])
def test_a_student_needs_no_weights_of_the_teacher(
    project: Path, capsys: pytest.CaptureFixture[str], kept: tuple[str, ...]
) -> None:
    teacher_logits.run(project)
    for path in Layout(project).teacher.iterdir():
        if path.name not in kept:
            path.unlink()
    capsys.readouterr()
    assert read(project).manifest.enabled
    assert "verified by hash alone; the teacher's weights are not in" in capsys.readouterr().out


def test_a_student_refuses_the_answers_of_another_teacher(project: Path) -> None:
    teacher_logits.run(project)
    values = params(project / "pictures")
    values["teacher"]["seed"] = 5
    write_params(project, values)
    teacher.run(project)
    with pytest.raises(ArtifactError, match="another teacher_sha256"):
        read(project)


def test_a_student_refuses_a_damaged_store(project: Path) -> None:
    teacher_logits.run(project)
    path = Layout(project).teacher_logits / LOGITS
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ArtifactError, match="is not the file that was written"):
        read(project)


def test_a_student_refuses_answers_to_other_views(project: Path) -> None:
    teacher_logits.run(project)
    layout = Layout(project)
    views = ViewSettings.model_validate(params(project / "pictures")["views"] | {"seed": 1})
    with pytest.raises(ArtifactError, match=r"another views: .*seed=0.* expected .*seed=1.*run the teacher_logits"):
        stored_answers(layout, load_prepared(layout.prepared), views, device=resolve_device("cpu"))


def test_a_student_refuses_answers_to_other_images(project: Path) -> None:
    teacher_logits.run(project)
    values = params(project / "pictures")
    values["data"]["seed"] = 7  # another choice of train images
    write_params(project, values)
    prepare.run(project)
    with pytest.raises(ArtifactError, match=r"another data_fingerprint: .*run the teacher_logits stage again"):
        read(project)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_back_end_asked_for_writes_the_store(
    project: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    change(project, {"backend": backend})
    teacher_logits.run(project)
    manifest = read_manifest(Layout(project).teacher_logits)
    assert manifest.computation is not None
    assert manifest.computation.runtime.startswith(f"{backend} ")
    assert f"float32 teacher pass in {manifest.computation.runtime}: largest logit" in capsys.readouterr().out
    assert read(project).manifest.backend == backend  # and torch confirms the answers


def test_the_fastest_way_is_measured_once_and_then_kept(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(project, {"backend": "auto"})
    teacher_logits.run(project)
    first = read_manifest(Layout(project).teacher_logits)
    (noted,) = (project / ".work" / "teacher_pass").glob("*.json")
    chosen = json.loads(noted.read_text())
    assert {way["backend"] for way in chosen["measured"]} >= {"torch", "onnxruntime"}
    assert first.computation is not None
    assert first.computation.runtime.startswith(chosen["backend"])
    other = "torch" if chosen["backend"] == "onnxruntime" else "onnxruntime"
    noted.write_text(json.dumps(chosen | {"backend": other}))
    monkeypatch.setattr(teacher_choice, "fastest", None)  # nobody measures again
    teacher_logits.run(project)
    second = read_manifest(Layout(project).teacher_logits)
    assert second.computation is not None
    assert second.computation.runtime.startswith(other)


def test_a_damaged_note_of_the_fastest_way_is_measured_again(project: Path) -> None:
    change(project, {"backend": "auto"})
    teacher_logits.run(project)
    (noted,) = (project / ".work" / "teacher_pass").glob("*.json")
    noted.write_text("{")
    teacher_logits.run(project)
    assert json.loads(noted.read_text())["measured"]


def online_lineages(project: Path, **settings: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Of a student that learns from logits and of one that learns from features, the teacher running online."""
    change(project, {"enabled": False} | settings)
    teacher_logits.run(project)
    layout = Layout(project)
    train = TrainSettings(epochs=1, batch_size=16, precision="float32", threads=1)
    model = Cnn(channels=(4, 4))
    rows = (
        DistilledStudent(model=model, train=train, method=KD()),
        ComposedStudent(model=model, train=train, method=ITRD()),
    )
    data, views = load_prepared(layout.prepared), ViewSettings(views_per_image=2)
    logits, features = (online_teacher(layout, layout.teacher, row, data=data, views=views)[1] for row in rows)
    return logits, features


def test_how_a_teacher_runs_online_is_part_of_its_students_lineage(project: Path) -> None:
    plain, plain_features = online_lineages(project)
    assert plain["teacher_pass"] == f"torch {torch.__version__}, float32, 2 folded"
    assert plain_features["teacher_pass"] == f"torch {torch.__version__}, float32"  # features are not folded
    rounded, rounded_features = online_lineages(project, precision="bfloat16")
    assert rounded["teacher_pass"] == f"torch {torch.__version__}, bfloat16, 2 folded"
    assert rounded_features["teacher_pass"] == f"torch {torch.__version__}, bfloat16"
    exported, features = online_lineages(project, backend="onnxruntime")
    assert exported["teacher_pass"].startswith("onnxruntime ")
    assert features == plain_features
    assert plain["teacher_sha256"] == exported["teacher_sha256"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_plan, "MIN_SECONDS", 0.0)


@pytest.mark.usefixtures("quick")
def test_the_plan_states_size_time_and_saving_and_writes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(project.rglob("*"))
    teacher_logits_plan.run(project)
    printed = capsys.readouterr().out
    num_images = json.loads((project / "data" / "prepared" / "manifest.json").read_text())["splits"]["train"][
        "num_images"
    ]
    assert f"({NUM_VIEWS} views of {num_images} images, 3 classes, float16)" in printed
    assert "views/s, measured" in printed
    assert "in 3 training runs (6 epochs)" in printed  # two seeds of one row, one of another; none of the baseline
    assert sorted(project.rglob("*")) == before


@pytest.mark.usefixtures("quick")
def test_the_plan_notes_views_that_no_training_sees(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = {"augmentation": {"name": "pad_crop_flip", "pad": 1}, "views_per_image": 18}
    change(project, {}, views=views)
    teacher_logits_plan.run(project)
    printed = capsys.readouterr().out
    assert "the longest run sees 2 of 18 views" in printed
    assert "9.0 times smaller" in printed
    assert "lost; set teacher_logits.enabled: false" in printed


@pytest.mark.usefixtures("quick")
def test_the_plan_refuses_a_method_that_the_store_does_not_fit(project: Path) -> None:
    change(project, {"top_k": 2})
    with pytest.raises(ParamsError, match=r"method kd with temperature: 4\.0.*2 largest"):
        teacher_logits_plan.run(project)


@pytest.mark.usefixtures("quick")
def test_the_plan_fails_if_the_disk_has_no_room(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_plan, "free_bytes", lambda folder: 10)
    with pytest.raises(ArtifactError, match=r"needs 0\.0 MB more, 0\.0 MB are free; make room"):
        teacher_logits_plan.run(project)
