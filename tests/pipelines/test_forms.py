"""Forms of a file from export to deploy: real files and answers, and latencies that the test decides."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.benchmark import BenchmarkSettings, Timing
from compress.data.prepared import load_prepared
from compress.errors import ParamsError
from compress.files import read_json, write_record
from compress.fingerprint import file_sha256
from compress.quantize import search
from compress.runtime import load_predictor
from compress.types import ImageArray, Predictor
from pipelines import distill, evaluate, export, forms, kept_forms, prepare, report, select, teacher, teacher_logits
from pipelines.layout import Layout
from tests.pipelines.project import make_project, params, write_params

STUDENTS = ("alone", "with_kd")
INT8, NARROW = "int8_static", "int8_static_reduce_range"
FASTER = {INT8: 0.4, NARROW: 0.5}
"""Milliseconds by the end of a name; whatever is not named takes 1.0."""


def settings(**changed: Any) -> dict[str, Any]:
    candidates = [{"name": "int8_static"}, {"name": "int8_static", "reduce_range": True}, {"name": "weight_only"}]
    return {"candidates": candidates, "num_calibration_images": 24, "threads": 1, "max_drop": 0.5, **changed}


def form_params(root: Path, **changed: Any) -> dict[str, Any]:
    values = params(root / "pictures")
    model = {"source": "cnn", "channels": [8, 16]}
    values["students"] = {
        "distilled": {"with_kd": values["students"]["distilled"]["with_kd"] | {"model": model}},
        "teacher_free": {"alone": values["students"]["teacher_free"]["alone"] | {"model": model}},
    }
    values["export"]["forms"] = settings(**changed)
    return values


def clock(monkeypatch: pytest.MonkeyPatch, milliseconds: Mapping[str, float]) -> None:
    """Decide what every timing of every stage says."""

    def of(name: str) -> float:
        return next((value for end, value in milliseconds.items() if name.endswith(end)), 1.0)

    def benchmark(
        predictors: Mapping[str, Predictor], images: ImageArray, *, settings: BenchmarkSettings
    ) -> dict[str, dict[int, Timing]]:
        return {
            name: {
                size: Timing(
                    batch_size=size,
                    latency_ms_p50=of(name) * size,
                    latency_ms_p95=2 * of(name) * size,
                    images_per_second=1000 / of(name),
                    num_calls=1,
                )
                for size in settings.batch_sizes
            }
            for name in predictors
        }

    for module in (search, evaluate, kept_forms):
        monkeypatch.setattr(module, "benchmark", benchmark)


@pytest.fixture(scope="module", autouse=True)
def patched() -> Iterator[pytest.MonkeyPatch]:
    """These tests look at files; tracking has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_TRACKING", "off")
        yield patch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Path:
    """A project whose stages have all run and whose int8 files are fast."""
    clock(patched, FASTER)
    root = make_project(tmp_path_factory.mktemp("finished"))
    write_params(root, form_params(root))
    prepare.run(root)
    teacher.run(root)
    teacher_logits.run(root)
    for name in STUDENTS:
        distill.run(root, name)
    export.run(root, "teacher")
    evaluate.run(root, "teacher")
    run_from(export.run, root)
    return root


def run_from(first: Callable[[Path, str], None], root: Path) -> None:
    """The stages from `first` on, for the students."""
    stages = [export.run, evaluate.run]
    for stage in stages[stages.index(first) :]:
        for name in STUDENTS:
            stage(root, name)
    select.run(root)


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, to change."""
    return Path(shutil.copytree(finished, tmp_path / "project"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["name"], row["form"]): row for row in read(root / "metrics" / "students.json")["students"]}


def test_every_student_has_a_row_for_each_form_that_is_kept(finished: Path) -> None:
    assert set(rows(finished)) == {(name, form) for name in STUDENTS for form in ("float32", INT8, NARROW)}
    table = read(finished / "metrics" / "students.json")
    (champion,) = [row for row in table["students"] if row["champion"]]
    assert (champion["name"], champion["form"]) == (table["champion"], table["form"])
    assert champion == read(finished / "metrics" / "champion.json")
    assert champion["form"] == INT8  # the fastest of its kind
    assert champion["pareto_front"]
    assert all(row["reason"] for row in table["students"] if not row["champion"])


def test_numbers_of_a_form_are_those_of_its_file(finished: Path) -> None:
    data = load_prepared(Layout(finished).prepared)
    for row in rows(finished).values():
        predict = load_predictor(finished / row["file"])
        assert (row["sha256"], row["size_bytes"]) == (predict.sha256, predict.size_bytes)
        for key, split in (("accuracy_top1", "test"), ("accuracy_top1_validation", "validation")):
            logits = np.concatenate([predict(images.numpy()) for images, _ in data.split(split).batches(5)])  # type: ignore[arg-type]
            assert row[key] == np.mean(logits.argmax(axis=1) == data.split(split).labels)  # type: ignore[arg-type]


def test_losses_and_speed_are_told_beside_the_float32_file_of_the_same_seed(finished: Path) -> None:
    all_rows = rows(finished)
    for (name, form), row in all_rows.items():
        if form == "float32":
            continue
        float32 = all_rows[name, "float32"]
        assert row["shipped_seed"] == float32["shipped_seed"]
        assert row["drop_from_float32"] == pytest.approx(float32["accuracy_top1"] - row["accuracy_top1"])
        assert row["speedup_over_float32"] == pytest.approx(1 / FASTER[form])
        assert (row["num_seeds"], row["accuracy_top1_std"]) == (1, 0.0)


def test_the_search_says_everything_about_every_candidate(finished: Path) -> None:
    folder = finished / "exports" / "with_kd"
    said = read(folder / "forms.json")
    assert [form["form"] for form in said["forms"]] == ["float32", INT8, NARROW, "weight_only"]
    for form in said["forms"][1:]:
        measured = form["measured"]
        assert {"sha256", "size_bytes", "accuracy_validation", "latency_ms_p50", "speedup"} <= measured.keys()
        path = folder / f"seed_{said['seed']}" / f"{form['form']}.onnx"
        assert path.exists() == form["is_kept"]
        assert form["is_kept"] == (form["form"] in FASTER)
        if form["is_kept"]:
            assert file_sha256(path) == measured["sha256"]
            assert measured["saturation"]["num_layers"] == 3
        else:
            assert form["reason"].startswith("no gain, keep float32: ")
    assert said["settings"]["num_calibration_images"] == said["forms"][1]["measured"]["num_calibration_images"] == 24


def test_forms_are_made_of_the_file_that_ships_and_of_nothing_else(finished: Path) -> None:
    described = read(finished / "exports" / "with_kd" / "export.json")
    assert {file["seed"] for file in described["forms"]} == {described["shipped"]["seed"]}
    for file in described["forms"]:
        metadata = load_predictor(finished / "exports" / "with_kd" / file["file"]).metadata
        assert metadata["form"] == file["form"]
        assert metadata["quantization"]["source_sha256"] == described["shipped"]["sha256"]  # type: ignore[index]
    assert read(finished / "exports" / "teacher" / "forms.json")["forms"] == []


def test_activations_are_observed_on_train_and_accuracy_on_validation(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def spy(source: Path, **arguments: Any) -> Any:
        given.update(arguments)
        return search.search_forms(source, **arguments)

    monkeypatch.setattr(forms, "search_forms", spy)
    export.run(project, "alone")
    manifest = load_prepared(Layout(project).prepared).manifest
    assert len(given["calibration"]) == manifest.splits["train"].num_images
    assert len(given["validation"]) == manifest.splits["validation"].num_images


def test_the_same_export_gives_the_same_forms_byte_for_byte(finished: Path, project: Path) -> None:
    shutil.rmtree(project / "exports" / "alone")
    export.run(project, "alone")
    before, after = (
        {file["form"]: file["sha256"] for file in read(root / "exports" / "alone" / "export.json")["forms"]}
        for root in (finished, project)
    )
    assert before == after
    assert set(before) == {INT8, NARROW}


def test_a_form_that_is_slower_when_measured_again_is_not_published(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(monkeypatch, {INT8: 0.99, NARROW: 1.3})
    run_from(evaluate.run, project)
    assert set(rows(project)) == {(name, "float32") for name in STUDENTS}
    details = read(project / "results" / "alone" / "details.json")["forms"]
    assert details[INT8]["reason"] == "no gain, keep float32: 1.01 times as fast when measured again, 1.05 needed"
    assert details[INT8]["test"] is None  # nobody looks at the test split for a form that is out
    assert "forms" not in read(project / "results" / "alone" / "evaluation.json")
    champion = read(project / "metrics" / "champion.json")
    assert file_sha256(project / "deploy" / "model.onnx") == champion["sha256"]
    assert champion["file"].endswith("float32.onnx")
    capsys.readouterr()
    report.run(project)
    assert "no gain, keep float32" in " ".join(capsys.readouterr().out.split())


def test_a_form_that_loses_more_on_all_validation_images_is_not_published(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search may score a part of them."""
    described = read_json(project / "exports" / "alone" / "export.json", made_by="export")
    for file in described["forms"]:
        file["budget"]["max_drop"] = -1.0
    write_record(project / "exports" / "alone" / "export.json", described)
    evaluate.run(project, "alone")
    reason = read(project / "results" / "alone" / "details.json")["forms"][INT8]["reason"]
    assert "of validation accuracy on all images, -1 allowed" in reason


def test_another_target_than_the_tables_is_timed_as_such(project: Path) -> None:
    write_params(project, form_params(project, target={"threads": 2, "batch_size": 4}))
    export.run(project, "alone")
    evaluate.run(project, "alone")
    metrics = read(project / "results" / "alone" / "evaluation.json")["forms"][INT8]
    assert metrics["speedup_over_float32"] == pytest.approx(2.5)


def test_no_gain_leaves_float32_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, {})
    run_from(export.run, project)
    assert set(rows(project)) == {(name, "float32") for name in STUDENTS}
    assert not list((project / "exports").glob("*/*/int8*.onnx"))
    searched = read(project / "metrics" / "students.json")["forms"]
    assert [(form["student"], form["is_kept"]) for form in searched] == [
        (name, False) for name in ("with_kd", "alone") for _ in range(3)
    ]
    assert all("1 times as fast, 1.05 needed" in form["reason"] for form in searched)


def test_a_form_that_answers_something_else_is_not_kept(project: Path) -> None:
    values = form_params(project)
    values["export"]["reduced_tolerance"] = {"int8": 1e-9}
    write_params(project, values)
    export.run(project, "alone")
    described = read(project / "exports" / "alone" / "export.json")
    assert described["forms"] == []
    assert not list((project / "exports" / "alone").glob("*/int8*.onnx"))
    reasons = {form["form"]: form["reason"] for form in read(project / "exports" / "alone" / "forms.json")["forms"]}
    assert "network and exported file disagree" in reasons[INT8]


def test_without_the_setting_nothing_is_searched(project: Path) -> None:
    values = form_params(project)
    del values["export"]["forms"]
    write_params(project, values)
    run_from(export.run, project)
    assert set(rows(project)) == {(name, "float32") for name in STUDENTS}
    assert read(project / "exports" / "alone" / "forms.json")["forms"] == []


def test_a_budget_that_would_publish_slower_files_is_refused(project: Path) -> None:
    write_params(project, form_params(project, min_speedup=0.9))
    with pytest.raises(ParamsError, match=r"export\.forms\.min_speedup"):
        export.run(project, "alone")


def test_what_is_shipped_says_what_it_is_and_what_it_loses(finished: Path) -> None:
    champion = read(finished / "metrics" / "champion.json")
    assert file_sha256(finished / "deploy" / "model.onnx") == champion["sha256"]
    card = (finished / "deploy" / "model_card.md").read_text()
    assert f"Form `{INT8}`, made of the float32 file: 2.50 times as fast" in card
    assert f"it loses {champion['drop_from_float32']:.2%} of accuracy on test" in card
    assert "On x86 processors without VNNI" in card
    assert read(finished / "deploy" / "golden" / "golden.json")["tolerance"] >= 0.02


def test_the_report_shows_forms_below_their_students(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.run(finished)
    printed = capsys.readouterr().out
    champion = read(finished / "metrics" / "champion.json")
    assert f"champion: {champion['name']} as {INT8}" in printed
    assert printed.count("kept") >= 4
    assert "weight_only" in printed
