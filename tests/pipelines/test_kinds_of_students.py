"""Rows of every group go through all stages, with a teacher or without one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import load_card
from compress.errors import ParamsError, SelectionError
from pipelines import distill, evaluate, export, prepare, report, select, teacher, teacher_logits
from pipelines.layout import Layout
from pipelines.select import method_label
from tests.pipelines.project import make_project, params, write_params

SMALL = {"source": "cnn", "channels": [4, 4]}
BRIEF = {"epochs": 1, "batch_size": 16, "precision": "float32", "threads": 1}


def row(method: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": SMALL, "method": method, "train": dict(BRIEF), **more}


WITH_TEACHER = {
    "distilled": {"plain_kd": row({"name": "kd"})},
    "composed": {
        "wttm_and_crd": row(
            {"name": "combination", "logits": {"name": "wttm"}, "features": [{"name": "crd", "num_negatives": 8}]}
        ),
        "itrd_alone": row({"name": "itrd"}),
        "standardised": row({"name": "logit_standardization", "method": {"name": "kd", "temperature": 2.0}}),
    },
    "teacher_free": {"alone": row({"name": "cross_entropy"})},
    "self_taught": {"born_again": row({"name": "tf_kd_self"}, teacher="alone")},
}
WITHOUT_TEACHER = {
    "teacher_free": {
        "alone": row({"name": "cross_entropy"}, seeds=[1, 0]),
        "regularised": row({"name": "tf_kd_reg"}),
        "self_weighted": row({"name": "tf_nkd"}),
        "weak_branch": row({"name": "uskd"}),
    },
    "self_taught": {
        "second_generation": row({"name": "tf_kd_self"}, teacher="alone"),
        "third_generation": row({"name": "kd"}, teacher="second_generation"),
    },
}


@pytest.fixture(scope="module", autouse=True)
def tracking_off() -> Any:
    """These tests look at files; tracking has tests of its own."""
    os.environ["COMPRESS_TRACKING"] = "off"
    yield
    del os.environ["COMPRESS_TRACKING"]


def run_all(root: Path, students: dict[str, dict[str, Any]], **sections: Any) -> Path:
    make_project(root)
    values = {**params(root / "pictures"), "students": students, **sections}
    write_params(root, values)
    prepare.run(root)
    teacher.run(root)
    teacher_logits.run(root)
    names = [name for group in students.values() for name in group]
    for name in names:
        distill.run(root, name)
    for name in ("teacher", *names):
        export.run(root, name)
        evaluate.run(root, name)
    select.run(root)
    return root


@pytest.fixture(scope="module")
def with_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("with_teacher"), WITH_TEACHER)


@pytest.fixture(scope="module")
def without_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("without_teacher"), WITHOUT_TEACHER, teacher=None)


def rows(root: Path) -> dict[str, dict[str, Any]]:
    table = json.loads((root / "metrics" / "students.json").read_text())
    return {student["name"]: student for student in table["students"]}


def test_rows_of_every_group_reach_the_table(with_teacher: Path) -> None:
    assert {name: student["method"] for name, student in rows(with_teacher).items()} == {
        "plain_kd": "kd",
        "wttm_and_crd": "wttm+crd",
        "itrd_alone": "itrd",
        "standardised": "logit_standardization(kd)",
        "alone": "cross_entropy",
        "born_again": "tf_kd_self",
    }


def test_a_composed_student_of_logits_alone_uses_the_stored_answers(with_teacher: Path) -> None:
    layout = Layout(with_teacher)
    assert "teacher_logits_sha256" in load_card(layout.trained("standardised", 0, "last")).lineage
    assert "teacher_logits_sha256" not in load_card(layout.trained("wttm_and_crd", 0, "last")).lineage


def test_parts_that_a_method_trains_do_not_ship_with_the_student(with_teacher: Path) -> None:
    layout = Layout(with_teacher)
    cards = [load_card(layout.trained(name, 0, "last")) for name in ("wttm_and_crd", "plain_kd")]
    assert cards[0].num_parameters == cards[1].num_parameters


def test_a_self_taught_student_learns_from_the_best_epoch_of_the_first_seed(without_teacher: Path) -> None:
    layout = Layout(without_teacher)
    taught = load_card(layout.trained("second_generation", 0, "last"))
    assert taught.lineage["teacher_sha256"] == load_card(layout.trained("alone", 1, "best")).saved_sha256


def test_without_a_teacher_there_is_a_champion_and_no_gap(
    without_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = rows(without_teacher)
    assert sum(student["champion"] for student in students.values()) == 1
    assert not any("gap_to_teacher" in student or "speedup" in student for student in students.values())
    assert (without_teacher / "deploy" / "model.onnx").is_file()
    assert "- teacher: none" in (without_teacher / "deploy" / "model_card.md").read_text()
    report.run(without_teacher)
    printed = capsys.readouterr().out
    assert all(name in printed for name in students)
    assert "the teacher" not in printed.replace("gap: teacher minus that mean", "")


def test_without_a_teacher_a_bound_on_the_gap_is_refused(without_teacher: Path, tmp_path: Path) -> None:
    values = {**params(without_teacher / "pictures"), "students": WITHOUT_TEACHER, "teacher": None}
    write_params(without_teacher, {**values, "select": {"max_drop": 0.1}})
    with pytest.raises(SelectionError, match=r"select\.max_drop compares with a teacher, and there is none"):
        select.run(without_teacher)


def test_a_row_that_needs_the_teacher_is_refused_where_there_is_none(without_teacher: Path) -> None:
    values = {**params(without_teacher / "pictures"), "students": WITH_TEACHER, "teacher": None}
    write_params(without_teacher, values)
    with pytest.raises(ParamsError, match=r"params\.yaml says teacher: null; give it a teacher"):
        distill.run(without_teacher, "plain_kd")


@pytest.mark.parametrize(
    ("teachers", "expected"),
    [
        ({"first": "second", "second": "first"}, "its teachers form a circle: first -> second"),
        ({"first": "nobody"}, "self_taught.first.teacher: no student 'nobody'; there are alone"),
    ],
    ids=["circle", "unknown"],
)
def test_self_taught_rows_must_lead_to_a_teacher(tmp_path: Path, teachers: dict[str, str], expected: str) -> None:
    root = make_project(tmp_path)
    students = {
        "teacher_free": {"alone": row({"name": "cross_entropy"})},
        "self_taught": {name: row({"name": "kd"}, teacher=source) for name, source in teachers.items()},
    }
    write_params(root, {**params(root / "pictures"), "students": students})
    with pytest.raises(ParamsError, match=expected):
        distill.run(root, "alone")


def test_a_method_made_of_methods_is_called_by_its_parts() -> None:
    parts = {"logits": {"name": "nkd"}, "features": [{"name": "vitkd"}, {"name": "crd"}]}
    assert method_label({"name": "combination", **parts}) == "nkd+vitkd+crd"
