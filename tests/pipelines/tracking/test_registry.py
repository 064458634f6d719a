"""The registered model and its champion, and which runs are current."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compress.errors import ArtifactError, TrackingError
from pipelines.tracking import track
from pipelines.tracking.events import file_sha256
from pipelines.tracking.model import models_of
from pipelines.tracking.registry import mark_current, promote
from pipelines.tracking.store import Store, connect
from pipelines.tracking.sync import sync
from tests.pipelines.tracking.fakes import SIZE, write_form, write_onnx, write_student


@pytest.fixture
def synced(project: Path) -> Path:
    """A project with two students, and their runs."""
    write_student(project, "tiny_kd", accuracy=0.9, latency_ms=0.25)
    write_student(project, "small_kd", accuracy=0.95, method={"name": "wttm", "gamma": 0.5})
    sync(project)
    return project


def champion(store: Store) -> str:
    return str(store.client.get_model_version_by_alias("compress", "champion").version)


def export_again(root: Path, name: str, *, seed: int) -> None:
    """As the export stage does after another training."""
    folder = root / "exports" / name
    export = json.loads((folder / "export.json").read_text())
    export["shipped"]["sha256"] = file_sha256(write_onnx(folder / export["shipped"]["file"], seed=seed))
    (folder / "export.json").write_text(json.dumps(export))


def flip_a_byte(path: Path) -> None:
    """As a failing disk would."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def current(store: Store) -> dict[str, str]:
    return {run.info.run_id: run.data.tags["current"] for run in store.client.search_runs([store.experiment_id])}


class TestPromote:
    def test_champion_is_the_exported_file_with_its_facts(self, synced: Path) -> None:
        promotion = promote(synced, "tiny_kd")

        store = connect(synced)
        version = store.client.get_model_version_by_alias("compress", "champion")
        sha256 = file_sha256(synced / "exports" / "tiny_kd" / "seed_0" / "float32.onnx")
        assert (promotion.version, promotion.student, promotion.sha256, promotion.is_new) == (
            "1",
            "tiny_kd",
            sha256,
            True,
        )
        assert version.tags == {
            "student": "tiny_kd",
            "method": "kd",
            "sha256": sha256,
            "accuracy": "0.9",
            "latency_ms": "0.25",
        }
        assert version.run_id == store.search({"student": "tiny_kd"})[0].info.run_id

    def test_promoting_twice_makes_one_version(self, synced: Path) -> None:
        first, second = promote(synced, "tiny_kd"), promote(synced, "tiny_kd")

        assert (first.version, second.version, second.is_new) == ("1", "1", False)
        assert len(connect(synced).client.search_model_versions("name='compress'")) == 1

    def test_alias_moves_to_the_student_promoted_last(self, synced: Path) -> None:
        store = connect(synced)
        versions = [promote(synced, name).version for name in ("tiny_kd", "small_kd", "tiny_kd")]

        assert versions == ["1", "2", "1"]
        assert champion(store) == "1"

    def test_superseded_run_is_promoted_with_its_own_model(self, synced: Path) -> None:
        store = connect(synced)
        (old,) = store.search({"student": "tiny_kd"})
        old_sha256 = file_sha256(synced / "exports" / "tiny_kd" / "seed_0" / "float32.onnx")
        with track(synced, name="tiny_kd", stage="distill") as new:
            pass
        write_student(synced, "tiny_kd", run_id=new.id)
        export_again(synced, "tiny_kd", seed=99)

        assert promote(synced, old.info.run_id).sha256 == old_sha256
        assert promote(synced, "tiny_kd").sha256 != old_sha256

    @pytest.mark.parametrize("was_promoted", [False, True], ids=["never promoted", "promoted before"])
    def test_exported_file_with_one_changed_byte_is_refused(self, synced: Path, was_promoted: bool) -> None:
        if was_promoted:
            promote(synced, "small_kd")
        flip_a_byte(synced / "exports" / "small_kd" / "seed_0" / "float32.onnx")

        with pytest.raises(ArtifactError, match=r"float32\.onnx was changed after it was exported"):
            promote(synced, "small_kd")
        versions = connect(synced).client.search_model_versions("name='compress'")
        assert len(versions) == was_promoted

    @pytest.mark.parametrize("was_promoted", [False, True], ids=["never promoted", "promoted before"])
    def test_stored_file_with_one_changed_byte_is_refused(self, synced: Path, was_promoted: bool) -> None:
        store = connect(synced)
        (run,) = store.search({"student": "small_kd"})
        if was_promoted:
            promote(synced, run.info.run_id)
        (logged,) = models_of(store, run)
        flip_a_byte(Path(logged.model.artifact_location.removeprefix("file://")) / "model.onnx")

        with pytest.raises(TrackingError, match=r"was changed after it was logged"):
            promote(synced, run.info.run_id)

    def test_a_form_of_a_student_is_promoted_with_its_own_numbers(self, synced: Path) -> None:
        path = write_form(synced, "tiny_kd", "int8_static")

        first, second = promote(synced, "tiny_kd/int8_static"), promote(synced, "tiny_kd/int8_static")

        assert (first.sha256, first.student, second.is_new) == (file_sha256(path), "tiny_kd", False)
        version = connect(synced).client.get_model_version_by_alias("compress", "champion")
        assert version.tags == {
            "student": "tiny_kd",
            "method": "kd",
            "sha256": first.sha256,
            "form": "int8_static",
            "accuracy": "0.89",
            "latency_ms": "0.2",
        }
        assert promote(synced, "tiny_kd").sha256 != first.sha256

    def test_a_form_that_was_not_kept_is_refused(self, synced: Path) -> None:
        with pytest.raises(TrackingError, match="has no form int4; promote one of small_kd, tiny_kd"):
            promote(synced, "tiny_kd/int4")

    def test_run_chosen_in_the_interface_promotes_its_student(self, synced: Path) -> None:
        (run,) = connect(synced).search({"student": "small_kd"})

        assert promote(synced, run.info.run_id).student == "small_kd"

    @pytest.mark.parametrize("name", ["tiny", "0123456789abcdef0123456789abcdef", "../x", "it's"])
    def test_unknown_name_is_refused_with_the_known_ones(self, synced: Path, name: str) -> None:
        with pytest.raises(TrackingError, match="there are small_kd, tiny_kd"):
            promote(synced, name)

    def test_student_whose_run_is_missing_is_refused_with_what_to_do(self, project: Path) -> None:
        write_student(project, "tiny_kd")

        with pytest.raises(TrackingError, match="run `compress sync` first"):
            promote(project, "tiny_kd")

    def test_run_without_a_model_is_refused(self, synced: Path) -> None:
        with track(synced, name="other", stage="distill") as run:
            pass

        with pytest.raises(TrackingError, match="has no ONNX model; promote one of small_kd, tiny_kd"):
            promote(synced, run.id or "")

    def test_server_registers_and_downloads_the_same_bytes(
        self, server: str, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.artifacts import download_artifacts

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team/students")
        write_student(project, "tiny_kd")
        sync(project)
        first, second = promote(project, "tiny_kd"), promote(project, "tiny_kd")

        assert (first.model, first.is_new, second.is_new) == ("team-students", True, False)
        folder = download_artifacts(artifact_uri=first.uri, tracking_uri=server, registry_uri=server)
        assert file_sha256(Path(folder) / "model.onnx") == first.sha256

    def test_nothing_is_left_in_the_current_folder(
        self, synced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        promote(synced, "tiny_kd")

        assert list(elsewhere.iterdir()) == []
        assert "MLFLOW_TRACKING_URI" not in os.environ

    @pytest.mark.slow
    def test_champion_is_served(self, synced: Path) -> None:
        promotion = promote(synced, "tiny_kd")
        port = 5000 + os.getpid() % 20000
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{synced}/mlflow.db",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = f"-m mlflow models serve -m {promotion.uri} --env-manager local -p {port}".split()
        images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
        with subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                answer = ask_when_up(f"http://127.0.0.1:{port}", images)
            finally:
                process.terminate()

        path = synced / "exports" / "tiny_kd" / "seed_0" / "float32.onnx"
        expected = onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
        np.testing.assert_allclose(answer, expected, rtol=1e-5)  # JSON carries float32 as decimal text


def ask_when_up(url: str, images: np.ndarray) -> list[list[float]]:
    """The logits that a scoring server answers, once it is up."""
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
    body = json.dumps({"inputs": {"image": images.tolist()}}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["predictions"]["logits"]


class TestMarkCurrent:
    def test_newer_run_of_a_student_takes_the_place_of_the_older(self, synced: Path) -> None:
        store = connect(synced)
        (old,) = store.search({"student": "tiny_kd"})
        (other,) = store.search({"student": "small_kd"})
        with track(synced, name="tiny_kd", stage="distill") as new:
            pass
        write_student(synced, "tiny_kd", run_id=new.id)

        mark_current(synced, ["tiny_kd", "small_kd"])

        assert current(store) == {old.info.run_id: "false", new.id: "true", other.info.run_id: "true"}

    def test_restored_results_make_their_run_current_again(self, synced: Path) -> None:
        store = connect(synced)
        (old,) = store.search({"student": "tiny_kd"})
        with track(synced, name="tiny_kd", stage="distill") as new:
            pass
        write_student(synced, "tiny_kd", run_id=new.id)
        mark_current(synced, ["tiny_kd", "small_kd"])
        write_student(synced, "tiny_kd", run_id=old.info.run_id)

        mark_current(synced, ["tiny_kd", "small_kd"])

        assert current(store)[old.info.run_id] == "true"
        assert current(store)[new.id or ""] == "false"

    def test_removed_student_is_no_longer_current(self, synced: Path) -> None:
        mark_current(synced, ["small_kd"])

        store = connect(synced)
        assert store.search({"student": "tiny_kd"})[0].data.tags["current"] == "false"

    def test_killed_run_that_was_superseded_no_longer_claims_to_run(self, synced: Path) -> None:
        store = connect(synced)
        killed = store.client.create_run(
            store.experiment_id, tags={"student": "tiny_kd", "current": "true", "dvc.workspace": "main"}
        )

        mark_current(synced, ["tiny_kd", "small_kd"])

        assert store.client.get_run(killed.info.run_id).info.status == "KILLED"

    def test_queued_experiment_leaves_the_workspaces_runs_current(
        self, synced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queued = tmp_path / "queued"
        queued.mkdir()
        monkeypatch.setenv("DVC_ROOT", str(synced))
        monkeypatch.setenv("DVC_EXP_NAME", "wide-deer")
        with track(queued, name="tiny_kd", stage="distill") as run:
            pass
        write_student(queued, "tiny_kd", run_id=run.id)

        mark_current(queued, ["tiny_kd"])

        assert set(current(connect(queued)).values()) == {"true"}

    def test_store_that_is_away_is_said_in_one_line(
        self, synced: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

        mark_current(synced, ["tiny_kd"])

        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "`compress sync` does it later" in lines[0]
