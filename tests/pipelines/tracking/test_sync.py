"""Runs rebuilt from the files that stages leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compress.errors import ArtifactError, TrackingError
from pipelines.tracking import track
from pipelines.tracking.events import points_event
from pipelines.tracking.model import models_of
from pipelines.tracking.registry import promote, run_of_results
from pipelines.tracking.spool import Spool
from pipelines.tracking.store import connect
from pipelines.tracking.sync import sync
from tests.pipelines.tracking.fakes import select, write_form, write_student


@pytest.fixture
def trained(project: Path) -> Path:
    """A project after `dvc pull`: every file is there, and an empty store."""
    write_student(project, "teacher", method={"name": "cross_entropy"}, accuracy=0.98)
    write_student(project, "tiny_kd", run_id="0123456789abcdef0123456789abcdef", accuracy=0.91234567, seeds=(0, 5))
    write_student(project, "small_kd", accuracy=0.95)
    select(project, ["tiny_kd", "small_kd"], champion="small_kd")
    return project


def test_fresh_clone_gets_a_run_with_everything_its_files_say(trained: Path) -> None:
    report = sync(trained)

    assert report.created == ("small_kd", "teacher", "tiny_kd")
    store = connect(trained)
    run = run_of_results(store, trained, "tiny_kd")
    assert run is not None
    assert run.info.status == "FINISHED"
    assert (run.info.end_time - run.info.start_time) / 1000 == pytest.approx(3.0, abs=2.0)  # train_seconds of two seeds
    expected = {"student": "tiny_kd", "method": "kd", "tuning.temperature": "4.0", "model.channels": "[8, 16]"}
    assert expected.items() <= run.data.params.items()
    metrics = {"accuracy_top1": 0.91235, "latency_ms_p50": 0.5, "train_seconds": 3.0}
    assert metrics.items() <= run.data.metrics.items()
    tags = {"data_fingerprint": "d" * 64, "compress.origin": "0123456789abcdef0123456789abcdef", "current": "true"}
    assert tags.items() <= run.data.tags.items()
    first, further = (
        [(point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, name)]
        for name in ("train/loss", "train/loss_seed_5")
    )
    assert first == [(1, 1.0), (2, 0.5), (3, 0.33333)]
    assert further == [(1, 0.16667), (2, 0.14286), (3, 0.125)]
    (known,) = models_of(store, run)
    assert (
        known.sha256 == json.loads((trained / "exports" / "tiny_kd" / "export.json").read_text())["shipped"]["sha256"]
    )
    assert known.step == 3
    assert {metric.key: metric.value for metric in known.model.metrics or []}["accuracy_top1"] == 0.91235


def test_forms_are_models_with_numbers_of_their_own_and_the_run_shows_those_of_float32(trained: Path) -> None:
    write_form(trained, "tiny_kd", "int8_static")

    sync(trained)
    promote(trained, "tiny_kd/int8_static")

    store = connect(trained)
    run = run_of_results(store, trained, "tiny_kd")
    assert run is not None
    shown = {
        known.form: metric.value
        for known in models_of(store, run)
        for metric in known.model.metrics or []
        if metric.key == "latency_ms_p50"
    }
    assert shown == {"float32": 0.5, "int8_static": 0.2}
    assert run.data.tags["forms"] == "float32, int8_static"
    assert (run.data.metrics["latency_ms_p50"], run.data.metrics["accuracy_top1"]) == (0.5, 0.91235)
    assert sync(trained).unchanged == ("small_kd", "teacher", "tiny_kd")


def test_second_sync_adds_nothing(trained: Path) -> None:
    sync(trained)
    store = connect(trained)
    before = {run.info.run_id: run.to_dictionary() for run in store.client.search_runs([store.experiment_id])}

    report = sync(trained)

    assert (report.created, report.updated, report.delivered, report.refused) == ((), (), 0, ())
    after = {run.info.run_id: run.to_dictionary() for run in store.client.search_runs([store.experiment_id])}
    assert after == before


def test_fresh_clone_is_rebuilt_on_a_server_too(server: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "rebuilt")

    assert len(sync(trained).created) == 3
    assert len(sync(trained).unchanged) == 3


def test_live_run_is_completed_without_repeating_a_point(project: Path) -> None:
    with track(project, name="tiny_kd", stage="distill") as live:
        live.log_epoch(1, {"train/loss": 1.0})
    write_student(project, "tiny_kd", run_id=live.id)

    report = sync(project)

    assert (report.created, report.updated) == ((), ("tiny_kd",))
    points = connect(project).client.get_metric_history(live.id or "", "train/loss")
    assert [point.step for point in points] == [1, 2, 3]


def test_new_evaluation_replaces_the_numbers_of_the_old_one(project: Path) -> None:
    write_student(project, "tiny_kd", accuracy=0.9)
    sync(project)
    write_student(project, "tiny_kd", accuracy=0.95)

    assert sync(project).updated == ("tiny_kd",)
    run = run_of_results(connect(project), project, "tiny_kd")
    assert run is not None
    assert run.data.metrics["accuracy_top1"] == 0.95


def test_student_that_was_removed_is_not_rebuilt_although_its_files_remain(trained: Path) -> None:
    select(trained, ["small_kd"], champion="small_kd")

    assert sync(trained).created == ("small_kd", "teacher")


def test_results_before_export_and_evaluation_are_enough_for_a_run(project: Path) -> None:
    write_student(project, "tiny_kd")
    shutil.rmtree(project / "exports")
    (project / "results" / "tiny_kd" / "evaluation.json").unlink()

    assert sync(project).created == ("tiny_kd",)
    assert sync(project).unchanged == ("tiny_kd",)


def test_damaged_result_is_named(project: Path) -> None:
    write_student(project, "tiny_kd")
    (project / "results" / "tiny_kd" / "training.json").write_text("{")

    with pytest.raises(ArtifactError, match=r"tiny_kd/training\.json is damaged"):
        sync(project)


def test_refused_event_is_reported_and_does_not_come_back(project: Path) -> None:
    with track(project, name="tiny_kd", stage="distill") as run:
        pass
    assert run.id is not None
    Spool(project).append(run.id, points_event([("no metric is called ♥", 1.0, 0)]))
    Spool(project).append(run.id, points_event([("train/loss", 1.0, 0)]))

    first, second = sync(project), sync(project)

    assert (first.delivered, len(first.refused)) == (1, 1)
    assert (second.delivered, second.refused) == (0, ())


def test_sync_says_what_is_wrong_when_tracking_is_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESS_TRACKING", "off")

    with pytest.raises(TrackingError, match="COMPRESS_TRACKING=off"):
        sync(project)


def test_sync_says_what_is_wrong_with_an_unusable_store(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    with pytest.raises(TrackingError, match=r"cannot use the tracking store http://127\.0\.0\.1:9: .*start the server"):
        sync(project)


def test_project_that_was_moved_is_told_what_to_do_and_can_be_rebuilt(trained: Path, tmp_path: Path) -> None:
    sync(trained)
    moved = trained.rename(tmp_path / "moved")

    with pytest.raises(TrackingError, match="delete the database and run `compress sync`"):
        sync(moved)
    again = moved.rename(tmp_path / "again")  # MLflow keeps a database open that it has seen under this name
    (again / "mlflow.db").unlink()
    assert len(sync(again).created) == 3
