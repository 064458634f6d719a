"""The page on which a person chooses a student."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import pytest

from compress.errors import TrackingError
from pipelines.tracking.registry import promote
from pipelines.tracking.store import connect
from pipelines.tracking.sync import sync
from pipelines.tracking.view import TAG, seed_view, ui_command
from tests.pipelines.tracking.fakes import write_student


def test_store_keeps_a_view_of_metrics_and_params_that_runs_have(project: Path) -> None:
    write_student(project, "tiny_kd")
    sync(project)

    page = seed_view(project)

    store = connect(project)
    assert page == f"/#/experiments/{store.experiment_id}/runs?viewStateShareKey=students&workflowType=machine_learning"
    view = json.loads(store.client.get_experiment(store.experiment_id).tags[TAG])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    (run,) = store.client.search_runs([store.experiment_id], state["searchFilter"])
    names = re.findall(r"(metrics|params)\.`(.+?)`", " ".join([*state["selectedColumns"], state["orderByKey"]]))
    assert len(names) == 7
    known = {"metrics": run.data.metrics, "params": run.data.params}
    assert [name for kind, name in names if name not in known[kind]] == []
    charts = [chart["type"] for chart in state["compareRunCharts"]]
    assert charts == ["SCATTER", "SCATTER", "PARALLEL", "LINE", "LINE"]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections


def test_server_accepts_the_view(server: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)

    assert seed_view(project) is not None


def test_view_that_cannot_be_stored_is_said_and_does_not_stop_a_promotion(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_student(project, "tiny_kd")
    sync(project)
    monkeypatch.setattr("pipelines.tracking.view.TAG", "a key that no store takes" * 20)

    assert seed_view(project) is None
    assert "view" in capsys.readouterr().err
    assert promote(project, "tiny_kd").version == "1"


def test_runs_on_a_server_are_looked_at_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")

    with pytest.raises(TrackingError, match=r"open that address in a browser"):
        ui_command(project)


def test_interface_listens_on_this_machine_only(project: Path) -> None:
    command = ui_command(project)

    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in command
