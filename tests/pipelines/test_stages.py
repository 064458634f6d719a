"""All stages one after the other, in a project of its own, and what they leave."""

import argparse
import csv
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
import pytest
import torch
from PIL import Image

from compress.artifact import load_card, load_model
from compress.data.prepared import load_prepared
from compress.errors import ArtifactError, ModelError, ParamsError, SelectionError, TrainingError
from compress.models import Cifar, Statistics, build_network
from compress.runtime import load_predictor
from compress.torch_predictor import TorchPredictor
from pipelines import distill, evaluate, export, prepare, report, select, side_by_side, teacher, teacher_logits
from pipelines.layout import Layout
from tests.pipelines.project import make_project, params, write_params

STUDENTS = ("with_kd", "with_nkd", "alone")


@pytest.fixture(scope="module", autouse=True)
def tracking_off() -> Any:
    """These tests look at files; tracking has tests of its own."""
    os.environ["COMPRESS_TRACKING"] = "off"
    yield
    del os.environ["COMPRESS_TRACKING"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stages have all run."""
    root = make_project(tmp_path_factory.mktemp("finished"))
    prepare.run(root)
    teacher.run(root)
    teacher_logits.run(root)
    for name in STUDENTS:
        distill.run(root, name)
    for name in ("teacher", *STUDENTS):
        export.run(root, name)
        evaluate.run(root, name)
    select.run(root)
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to break."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


def table(root: Path) -> dict[str, Any]:
    return json.loads((root / "metrics" / "students.json").read_text())


@pytest.fixture
def untrained(project: Path) -> Path:
    """A copy without trained students."""
    shutil.rmtree(project / "models" / "with_kd")
    for name in STUDENTS:
        (project / "results" / name / "training.json").unlink()
    return project


def test_the_table_has_every_student_once_and_one_champion(finished: Path) -> None:
    students = table(finished)["students"]
    assert sorted(row["name"] for row in students) == sorted(STUDENTS)
    assert [row["name"] for row in students if row["champion"]] == [table(finished)["champion"]]
    for row in students:
        assert {"form", "method", "seeds", "accuracy_top1", "latency_ms_p50", "size_mb", "speedup"} <= row.keys()
        assert row["champion"] or row["reason"]


def test_the_champions_metrics_stand_alone_for_dvc(finished: Path) -> None:
    champion = json.loads((finished / "metrics" / "champion.json").read_text())
    assert champion == next(row for row in table(finished)["students"] if row["champion"])


def test_accuracy_in_the_table_is_that_of_the_exported_file(finished: Path) -> None:
    split = load_prepared(Layout(finished).prepared).split("test")
    for row in table(finished)["students"]:
        predict = load_predictor(finished / row["file"])
        logits = np.concatenate([predict(images.numpy()) for images, _ in split.batches(7)])
        assert row["accuracy_top1"] == np.mean(logits.argmax(axis=1) == split.labels)
        assert row["sha256"] == predict.sha256


def test_several_seeds_give_a_mean_and_a_spread(finished: Path) -> None:
    row = next(row for row in table(finished)["students"] if row["name"] == "with_kd")
    details = json.loads((finished / "results" / "with_kd" / "details.json").read_text())
    accuracies = [seed["test"]["accuracy_top1"] for seed in details["seeds"]]
    assert row["seeds"] == [0, 1]
    assert row["accuracy_top1_mean"] == pytest.approx(np.mean(accuracies))
    assert row["accuracy_top1_std"] == pytest.approx(np.std(accuracies, ddof=1))


def test_the_shipped_seed_is_chosen_on_validation(finished: Path) -> None:
    described = json.loads((finished / "exports" / "with_kd" / "export.json").read_text())
    best = max(described["files"], key=lambda file: file["accuracy_top1_validation"])
    assert described["shipped"]["accuracy_top1_validation"] == best["accuracy_top1_validation"]


def test_last_and_best_weights_are_both_kept(finished: Path) -> None:
    layout = Layout(finished)
    training = json.loads((layout.results("with_kd") / "training.json").read_text())
    for seed in training["seeds"]:
        for which in ("last", "best"):
            assert load_card(layout.trained("with_kd", seed["seed"], which)).epoch == seed[which]["epoch"]


def test_history_has_one_row_per_seed_and_epoch(finished: Path) -> None:
    with (finished / "results" / "with_kd" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]


def test_the_onnx_file_says_what_it_is_and_what_it_was_made_from(finished: Path) -> None:
    layout = Layout(finished)
    metadata = load_predictor(layout.exported("with_kd") / "seed_0" / "float32.onnx").metadata
    assert metadata["classes"] == ["blue", "green", "red"]
    assert metadata["lineage"]["data_fingerprint"] == load_prepared(layout.prepared).manifest.fingerprint  # type: ignore[index]
    assert metadata["lineage"]["teacher_sha256"] == load_card(layout.teacher).weights_sha256  # type: ignore[index]
    assert metadata["preprocessing"]["color_order"] == "RGB"  # type: ignore[index]
    assert metadata["architecture"]["source"] == "cnn"  # type: ignore[index]
    assert metadata["training"]["method"]["name"] == "kd"  # type: ignore[index]


def test_the_onnx_file_holds_no_path_of_this_machine(finished: Path) -> None:
    content = (finished / "exports" / "with_kd" / "seed_0" / "float32.onnx").read_bytes()
    for path in (finished, Path.cwd(), Path(torch.__file__).parent):
        assert str(path).encode() not in content


def test_the_deployed_file_is_the_evaluated_one(finished: Path) -> None:
    champion = json.loads((finished / "metrics" / "champion.json").read_text())
    deployed = (finished / "deploy" / "model.onnx").read_bytes()
    assert hashlib.sha256(deployed).hexdigest() == champion["sha256"]
    assert onnx.load_from_string(deployed).ir_version == 9


def test_the_report_prints_every_student_and_the_way_on(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.run(finished)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*STUDENTS, "teacher", "champion", "deploy/model.onnx", "make ui"))


def test_students_train_with_the_teacher_online_when_the_store_is_switched_off(project: Path) -> None:
    values = params(project / "pictures")
    write_params(project, values | {"teacher_logits": {"enabled": False}})
    teacher_logits.run(project)
    distill.run(project, "with_nkd")
    training = json.loads((project / "results" / "with_nkd" / "training.json").read_text())
    assert training["teacher_sha256"] == load_card(Layout(project).teacher).weights_sha256
    assert "teacher_logits_sha256" not in training


def test_a_finished_training_is_the_same_bits_again(project: Path) -> None:
    folder = Layout(project).trained("alone", 0, "last")
    before = (folder / "weights.safetensors").read_bytes()
    shutil.rmtree(folder)
    distill.run(project, "alone")
    assert (folder / "weights.safetensors").read_bytes() == before


def test_a_teacher_can_be_loaded_instead_of_trained(project: Path) -> None:
    before, _ = load_model(Layout(project).teacher)
    saved = shutil.copytree(Layout(project).teacher, project / "saved")
    values = params(project / "pictures")
    values["teacher"] = {"model": {"source": "cnn", "channels": [8, 8], "checkpoint": str(saved)}}
    write_params(project, values)
    teacher.run(project)
    after, card = load_model(Layout(project).teacher)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    cpu = torch.device("cpu")
    assert np.array_equal(TorchPredictor(before, cpu)(images), TorchPredictor(after, cpu)(images))
    assert 0 <= card.metrics["accuracy_top1_validation"] <= 1


def test_a_teacher_of_other_classes_is_refused_naming_both_sides(project: Path) -> None:
    saved = shutil.copytree(Layout(project).teacher, project / "saved")
    (project / "pictures" / "violet").mkdir()
    for shade in range(12):
        Image.new("RGB", (8, 8), (200, shade, 200)).save(project / "pictures" / "violet" / f"{shade}.png")
    values = params(project / "pictures")
    values["teacher"] = {"model": {"source": "cnn", "channels": [8, 8], "checkpoint": str(saved)}}
    write_params(project, values)
    prepare.run(project)
    with pytest.raises(ModelError, match=r"3 .*4 "):
        teacher.run(project)


def test_a_teacher_below_its_bound_stops_before_any_student(project: Path) -> None:
    values = params(project / "pictures")
    values["teacher"]["min_accuracy"] = 1.0
    values["teacher"]["train"]["epochs"] = 1
    values["teacher"]["train"]["optimizer"] = {"name": "sgd", "learning_rate": 1e-9}
    write_params(project, values)
    with pytest.raises(ModelError, match=r"below teacher\.min_accuracy 100\.00%"):
        teacher.run(project)


def test_a_teacher_with_neither_weights_nor_training_is_refused(project: Path) -> None:
    values = params(project / "pictures")
    del values["teacher"]["train"]
    write_params(project, values)
    with pytest.raises(ParamsError, match=r"add teacher\.train to train it, or set checkpoint"):
        teacher.run(project)


def test_answers_of_another_teacher_are_refused(project: Path) -> None:
    values = params(project / "pictures")
    values["teacher"]["seed"] = 5
    write_params(project, values)
    teacher.run(project)
    with pytest.raises(ArtifactError, match="another teacher_sha256"):
        distill.run(project, "with_kd")


@pytest.mark.parametrize(
    ("stage", "missing", "cure"),
    [
        ("teacher", "data/prepared", "run the prepare stage"),
        ("distill", "data/teacher_logits", "run the teacher_logits stage"),
        ("export", "models/with_kd", "run the stage that trains it"),
        ("evaluate", "exports/with_kd", "run the export stage"),
        ("select", "results/alone/evaluation.json", "run the evaluate stage"),
    ],
)
def test_a_missing_input_names_the_stage_that_makes_it(project: Path, stage: str, missing: str, cure: str) -> None:
    path = project / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = {
        "teacher": lambda: teacher.run(project),
        "distill": lambda: distill.run(project, "with_kd"),
        "export": lambda: export.run(project, "with_kd"),
        "evaluate": lambda: evaluate.run(project, "with_kd"),
        "select": lambda: select.run(project),
    }[stage]
    with pytest.raises(ArtifactError, match=cure):
        run()


def test_constraints_nobody_meets_leave_a_table_and_an_error(project: Path) -> None:
    write_params(project, params(project / "pictures") | {"select": {"max_size_mb": 0.0001}})
    with pytest.raises(SelectionError, match="larger than max_size_mb"):
        select.run(project)
    assert table(project)["champion"] is None
    assert len(table(project)["students"]) == 3


def test_a_removed_student_leaves_the_table(project: Path) -> None:
    values = params(project / "pictures")
    del values["students"]["distilled"]["with_nkd"]
    write_params(project, values)
    select.run(project)
    assert {row["name"] for row in table(project)["students"]} == {"with_kd", "alone"}


def test_stages_run_without_mlflow_and_dvc(project: Path) -> None:
    """As on a machine that has only what training and measuring need."""
    program = (
        "import sys\n"
        "for name in ('mlflow', 'dvc', 'sklearn', 'matplotlib', 'psutil'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from pipelines import distill, evaluate, export, select\n"
        "root = Path(sys.argv[1])\n"
        "distill.run(root, 'alone'); export.run(root, 'alone'); evaluate.run(root, 'alone'); select.run(root)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "COMPRESS_TRACKING"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(project)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tracking is off" in done.stderr


def test_students_trained_side_by_side_finish_as_if_trained_alone(
    finished: Path, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side_by_side.run_all(untrained)
    assert "3 of 3 students to train" in capsys.readouterr().out
    for name in STUDENTS:
        distill.run(untrained, name)
        assert f"{name} seed 0: continuing after epoch 2/2" in capsys.readouterr().out or name != "with_kd"
    layouts = Layout(finished), Layout(untrained)
    for seed in (0, 1):
        weights = [layout.trained("with_kd", seed, "last") / "weights.safetensors" for layout in layouts]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_finished_students_are_not_trained_side_by_side_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side_by_side.run_all(project)
    assert "0 of 3 students to train: none" in capsys.readouterr().out


def test_students_divided_among_processes_finish_as_if_trained_alone(
    finished: Path, untrained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    side_by_side.run_jobs(untrained, 2)
    told = capfd.readouterr().out
    assert "2 of 3 students to train: with_kd, alone" in told
    assert "1 of 3 students to train: with_nkd" in told
    for name in STUDENTS:
        distill.run(untrained, name)
        assert f"{name}: continuing after epoch 2/2" in capfd.readouterr().out or name == "with_kd"
    paths = [Layout(root).trained("with_kd", 1, "last") / "weights.safetensors" for root in (finished, untrained)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_processes_that_fail_are_told_and_the_others_finish(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = params(project / "pictures")
    del values["students"]["distilled"]["with_nkd"]["train"]["threads"]
    values["students"]["distilled"]["with_kd"]["train"]["epochs"] = 1
    write_params(project, values)
    with pytest.raises(TrainingError, match="1 of 2 processes failed"):
        side_by_side.run_jobs(project, 2)
    told = capfd.readouterr()
    assert "with_nkd: where several processes train on a CPU the row has to say how many threads" in told.err
    assert "with_kd seed 1: epoch 1/1" in told.out


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        side_by_side.Part.parse(text)


def test_a_checkpoint_of_the_public_code_bases_teaches(project: Path) -> None:
    """As RepDistiller writes them: weights under `model`, beside settings that are never unpickled."""
    statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    network = build_network(Cifar(name="resnet8"), num_classes=3, image_size=(8, 8), statistics=statistics)
    path = project / "ckpt_epoch_240.pth"
    weights = network.backbone.state_dict()
    torch.save({"opt": argparse.Namespace(learning_rate=0.05), "epoch": 240, "model": weights}, path)
    model = {"source": "cifar", "name": "resnet8", "checkpoint": str(path)}
    write_params(project, {**params(project / "pictures"), "teacher": {"model": model}})
    teacher.run(project)
    teacher_logits.run(project)
    distill.run(project, "with_kd")
    layout = Layout(project)
    loaded, card = load_model(layout.teacher)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.backbone.state_dict().items())
    assert load_card(layout.trained("with_kd", 0, "last")).lineage["teacher_sha256"] == card.saved_sha256
