"""Runs against real stores: SQLite files, a real `mlflow server`, and servers that are away."""

from __future__ import annotations

import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from pipelines.tracking import ensure_store, store_uri, track
from pipelines.tracking.spool import Spool
from pipelines.tracking.store import Store, connect
from pipelines.tracking.sync import sync
from tests.pipelines.tracking.fakes import SIZE, write_onnx, write_student

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun


CODE = Path(__file__).parents[3]


def stored(store: Store, run_id: str | None) -> StoredRun:
    assert run_id is not None
    return store.client.get_run(run_id)


def history(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run_id, metric)]


def num_runs(store: Store) -> int:
    return len(store.client.search_runs([store.experiment_id]))


def tracking_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracking:")]


def train_something(root: Path, *, epochs: int = 3, pause: float = 0.0) -> str | None:
    with track(root, name="tiny_kd", stage="distill", tags={"data_fingerprint": "d" * 64}) as run:
        run.log_params(
            {"student": "tiny_kd", "method": {"name": "kd", "temperature": 4.0}, "train": {"epochs": epochs}}
        )
        for epoch in range(1, epochs + 1):
            run.log_epoch(epoch, {"train/loss": 1.0 / epoch, "validation/accuracy_top1": 1 - 0.5 / epoch})
            time.sleep(pause)
    return run.id


def train_until(root: Path, problem: type[BaseException]) -> str | None:
    """One epoch, then a problem; the run's id."""
    ids: list[str | None] = []

    def stage() -> None:
        with track(root, name="tiny_kd", stage="distill") as run:
            ids.append(run.id)
            run.log_epoch(1, {"train/loss": 1.0})
            raise problem

    with pytest.raises(problem):
        stage()
    return ids[0]


class TestEmbeddedStore:
    def test_run_has_params_curves_tags_and_status(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DVC_STAGE", "distill@tiny_kd")
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=project, check=True)
        (project / "dvc.lock").write_text("DVC itself writes this while stages run")

        run_id = train_something(project)

        store = connect(project)
        run = stored(store, run_id)
        assert run.info.run_name == "tiny_kd"
        assert run.info.status == "FINISHED"
        assert run.data.params == {
            "student": "tiny_kd",
            "method": "kd",
            "tuning.temperature": "4.0",
            "train.epochs": "3",
        }
        assert history(store, run.info.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.33333)]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
        expected = {
            "data_fingerprint": "d" * 64,
            "dvc.stage": "distill@tiny_kd",
            "git.dirty": "false",
            "mlflow.source.git.commit": commit.stdout.strip(),
            "student": "tiny_kd",
        }
        assert expected.items() <= run.data.tags.items()

    def test_change_of_the_pipelines_own_files_is_marked_dirty(self, project: Path) -> None:
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--allow-empty"]
        subprocess.run(git, cwd=project, check=True)
        (project / "params.yaml").write_text("changed: true")

        assert stored(connect(project), train_something(project)).data.tags["git.dirty"] == "true"

    @pytest.mark.parametrize(("problem", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
    def test_run_of_a_stage_that_ends_early_says_so(
        self, project: Path, problem: type[BaseException], status: str
    ) -> None:
        run_id = train_until(project, problem)

        assert stored(connect(project), run_id).info.status == status

    def test_curves_of_a_further_seed_stand_beside_those_of_the_first(self, project: Path) -> None:
        with track(project, name="tiny_kd", stage="distill") as run:
            run.log_epoch(1, {"train/loss": 1.0})
            run.log_epoch(1, {"train/loss": 2.0}, seed=7)

        metrics = stored(connect(project), run.id).data.metrics
        assert {name: metrics[name] for name in metrics if not name.startswith("system/")} == {
            "train/loss": 1.0,
            "train/loss_seed_7": 2.0,
        }

    def test_later_stage_continues_the_run_without_changing_its_time(self, project: Path) -> None:
        run_id = train_something(project)
        store = connect(project)
        before = stored(store, run_id).info

        with track(project, name="tiny_kd", stage="evaluate", run_id=run_id, tags={"export_sha256": "e"}) as run:
            run.log_metrics({"accuracy_top1": 0.912345678})

        after = stored(store, run_id)
        assert run.id == run_id
        assert num_runs(store) == 1
        assert after.data.metrics["accuracy_top1"] == 0.91235
        assert after.data.tags["export_sha256"] == "e"
        assert (after.info.status, after.info.end_time) == (before.status, before.end_time)

    def test_stages_that_bring_an_unknown_id_share_one_new_run(self, project: Path) -> None:
        elsewhere = "0123456789abcdef0123456789abcdef"
        ids = set[str | None]()
        for stage in ("export", "evaluate"):
            with track(project, name="tiny_kd", stage=stage, run_id=elsewhere) as run:
                ids.add(run.id)

        store = connect(project)
        assert len(ids) == num_runs(store) == 1
        assert stored(store, ids.pop()).data.tags["compress.origin"] == elsewhere

    def test_resumed_training_goes_on_in_its_run(self, project: Path) -> None:
        run_id = train_until(project, KeyboardInterrupt)
        with track(project, name="tiny_kd", stage="distill", run_id=run_id) as run:
            run.log_epoch(2, {"train/loss": 0.5})

        store = connect(project)
        assert run.id == run_id
        assert stored(store, run.id).info.status == "FINISHED"
        assert [step for step, _ in history(store, run.id or "", "train/loss")] == [1, 2]

    def test_stage_after_an_untracked_training_finds_the_same_run_again(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_student(project, "tiny_kd", run_id=None)
        with track(project, name="tiny_kd", stage="export") as first:
            pass
        with track(project, name="tiny_kd", stage="evaluate") as second:
            pass

        assert first.id == second.id

    def test_dataset_is_listed_with_its_context(self, project: Path) -> None:
        with track(project, name="tiny_kd", stage="distill") as run:
            run.log_dataset("digits", digest="a" * 64, num_rows=1437, context="training")

        inputs = stored(connect(project), run.id).inputs.dataset_inputs
        assert [(entry.dataset.name, entry.dataset.digest) for entry in inputs] == [("digits", "a" * 36)]
        assert json.loads(inputs[0].dataset.profile or "") == {"num_rows": 1437}
        assert [tag.value for tag in inputs[0].tags] == ["training"]

    def test_machine_is_watched_while_a_network_trains(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

        run_id = train_something(project, pause=0.2)

        assert "system/cpu_utilization_percentage" in stored(connect(project), run_id).data.metrics

    def test_refused_event_is_said_once_and_the_rest_is_recorded(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with track(project, name="tiny_kd", stage="distill") as run:
            run.log_params({"train": {"epochs": 3}})
            run.log_params({"train": {"epochs": 4}})
            run.log_params({"train": {"epochs": 5}})
            run.log_epoch(1, {"train/loss": 1.0})

        lines = tracking_lines(capsys)
        assert len(lines) == 1
        assert "refused" in lines[0]
        assert stored(connect(project), run.id).data.metrics["train/loss"] == 1.0
        assert Spool(project).waiting() == []

    def test_queued_experiment_records_to_the_projects_store(
        self, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queued = tmp_path / "queued"
        queued.mkdir()
        monkeypatch.setenv("DVC_ROOT", str(project))
        monkeypatch.setenv("DVC_EXP_NAME", "wide-deer")

        assert store_uri(queued) == f"sqlite:///{project}/mlflow.db"
        run = stored(connect(project), train_something(queued))
        assert run.data.tags["dvc.workspace"] == run.data.tags["dvc.exp_name"] == "wide-deer"
        assert run.info.artifact_uri.startswith(f"{(project / 'mlartifacts').as_uri()}/")

    def test_folder_may_have_any_name(self, empty_database: Path, tmp_path: Path) -> None:
        root = tmp_path / "pure data, 100 % ü#1"
        root.mkdir()
        (root / "mlflow.db").write_bytes(empty_database.read_bytes())
        path = write_onnx(root / "float32.onnx", seed=0)
        with track(root, name="tiny_kd", stage="export") as run:
            run.log_onnx(path, name="tiny_kd")

        assert model_files(connect(root), run.id)["model.onnx"] == path.read_bytes()

    def test_four_processes_share_a_store_that_none_of_them_found(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        # One import of MLflow for all four; each of them still opens the store by itself.
        context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "pipelines.tracking"])
        processes = [context.Process(target=create_store_and_train, args=(tmp_path,)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

        assert [process.exitcode for process in processes] == [0] * 4
        store = connect(tmp_path)
        assert num_runs(store) == 4
        for run in store.client.search_runs([store.experiment_id]):
            assert [step for step, _ in history(store, run.info.run_id, "train/loss")] == list(range(1, 26))
        assert Spool(tmp_path).waiting() == []


def create_store_and_train(root: Path) -> None:
    """What each of several processes does; runs in one of its own."""
    ensure_store(root)
    train_something(root, epochs=25)


def model_files(store: Store, run_id: str | None) -> dict[str, bytes]:
    """The files of a run's only model, as a person would download them."""
    from mlflow.artifacts import download_artifacts

    (output,) = stored(store, run_id).outputs.model_outputs
    location = store.client.get_logged_model(output.model_id).artifact_location
    folder = Path(download_artifacts(artifact_uri=location, tracking_uri=store.uri))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class TestModel:
    def test_downloaded_model_is_the_exported_file_and_runs_alone(self, project: Path, tmp_path: Path) -> None:
        path = write_onnx(project / "exports" / "float32.onnx", seed=0)
        images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
        with track(project, name="tiny_kd", stage="export") as run:
            run.log_onnx(path, name="tiny_kd", step=7, example=images)

        files = model_files(connect(project), run.id)
        assert files["model.onnx"] == path.read_bytes()
        descriptions = {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"}
        examples = {"input_example.json", "serving_input_example.json"}
        assert files.keys() == {"model.onnx"} | descriptions | examples  # no second file with weights
        (tmp_path / "alone").mkdir()
        (tmp_path / "alone" / "any.onnx").write_bytes(files["model.onnx"])
        expected = onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
        alone = onnxruntime.InferenceSession(tmp_path / "alone" / "any.onnx").run(None, {"image": images})[0]
        np.testing.assert_array_equal(alone, expected)
        assert f"onnxruntime=={onnxruntime.__version__}" in files["requirements.txt"].decode().splitlines()

    def test_mlflow_loads_it_with_a_signature_and_predicts_the_same(self, project: Path) -> None:
        import mlflow.onnx
        import mlflow.pyfunc

        path = write_onnx(project / "float32.onnx", seed=0)
        images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
        with track(project, name="tiny_kd", stage="export") as run:
            run.log_onnx(path, name="tiny_kd", example=images)
        store = connect(project)
        (output,) = stored(store, run.id).outputs.model_outputs
        location = store.client.get_logged_model(output.model_id).artifact_location

        assert mlflow.onnx.load_model(location).graph.input[0].name == "image"
        loaded = mlflow.pyfunc.load_model(location)
        expected = onnxruntime.InferenceSession(path).run(None, {"image": images})[0]
        np.testing.assert_array_equal(loaded.predict({"image": images})["logits"], expected)
        (inputs,), (outputs,) = (
            specs.to_dict() for specs in (loaded.metadata.signature.inputs, loaded.metadata.signature.outputs)
        )
        assert (inputs["name"], inputs["tensor-spec"]) == ("image", {"dtype": "uint8", "shape": (-1, SIZE, SIZE, 3)})
        assert (outputs["name"], outputs["tensor-spec"]) == ("logits", {"dtype": "float32", "shape": (-1, 3)})
        assert loaded.metadata.metadata["classes"] == '["cat", "dog", "fish"]'
        np.testing.assert_array_equal(loaded.input_example["image"], images[:1])

    def test_model_is_named_for_its_student_and_shows_final_metrics_at_its_step(self, project: Path) -> None:
        path = write_onnx(project / "float32.onnx", seed=0)
        run_id = train_something(project)
        with track(project, name="tiny_kd", stage="export", run_id=run_id) as run:
            run.log_onnx(path, name="tiny_kd", step=3, metrics={"size_mb": 0.25})
        with track(project, name="tiny_kd", stage="evaluate", run_id=run_id) as run:
            run.log_metrics({"accuracy_top1": 0.9})

        store = connect(project)
        run = stored(store, run_id)
        (output,) = run.outputs.model_outputs
        model = store.client.get_logged_model(output.model_id)
        assert model.name == "tiny_kd"
        assert {metric.key: (metric.value, metric.step) for metric in model.metrics or []} == {
            "size_mb": (0.25, 3),
            "accuracy_top1": (0.9, 3),
        }
        assert model.params["method"] == "kd"
        assert run.data.metrics["accuracy_top1"] == 0.9

    def test_same_file_again_stays_one_model_and_another_file_is_a_second(self, project: Path) -> None:
        path = write_onnx(project / "float32.onnx", seed=0)
        with track(project, name="tiny_kd", stage="export") as run:
            run.log_onnx(path, name="tiny_kd")
            run.log_onnx(path, name="tiny_kd")
        store = connect(project)
        assert len(stored(store, run.id).outputs.model_outputs) == 1

        with track(project, name="tiny_kd", stage="export", run_id=run.id) as run:
            run.log_onnx(write_onnx(path, seed=1), name="tiny_kd")
        assert len(stored(store, run.id).outputs.model_outputs) == 2

    def test_extra_file_goes_to_the_model_so_that_the_runs_page_still_lists_both(self, project: Path) -> None:
        (project / "confusion.csv").write_text("actual,predicted\n")
        with track(project, name="tiny_kd", stage="export") as run:
            run.log_onnx(write_onnx(project / "float32.onnx", seed=0), name="tiny_kd")
            run.log_file(project / "confusion.csv")

        store = connect(project)
        assert {"model.onnx", "confusion.csv"} <= model_files(store, run.id).keys()
        assert store.client.list_artifacts(run.id or "") == []


class TestOff:
    @pytest.fixture(params=["switched off", "not installed"], autouse=True)
    def off(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "switched off":
            monkeypatch.setenv("COMPRESS_TRACKING", "off")
        else:
            monkeypatch.setitem(sys.modules, "mlflow", None)  # what `import mlflow` finds where it is not installed

    def test_every_call_works_and_one_line_says_that_it_is_off(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_onnx(tmp_path / "float32.onnx", seed=0)
        with track(tmp_path, name="tiny_kd", stage="distill") as run:
            run.log_params({"method": {"name": "kd"}})
            run.log_epoch(1, {"train/loss": 1.0})
            run.log_metrics({"accuracy_top1": 0.9})
            run.set_tags({"a": "b"})
            run.log_file(path)
            run.log_dataset("digits", digest="a", num_rows=1, context="training")
            run.log_onnx(path, name="tiny_kd")

        assert run.id is None
        assert run.url is None
        lines = tracking_lines(capsys)
        assert len(lines) == 1
        assert "tracking is off" in lines[0]
        assert not (tmp_path / "mlflow.db").exists()
        assert Spool(tmp_path).waiting() == []


@contextmanager
def silent_server() -> Generator[str]:
    """A server that accepts connections and never answers."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def closed_port() -> Generator[str]:
    """An address that refuses connections."""
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@contextmanager
def relay(target: str) -> Generator[tuple[str, threading.Event]]:
    """A way to a server that can be cut while it is in use: the address, and what cuts it."""
    cut = threading.Event()
    host, port = target.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def forward(source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(0.05)
        with closing(source), closing(sink):
            while not cut.is_set():
                try:
                    data = source.recv(65536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not data:
                    return
                sink.sendall(data)

    def accept() -> None:
        with closing(listener):
            while not cut.is_set():
                try:
                    client, _ = listener.accept()
                except TimeoutError:
                    continue
                server = socket.create_connection((host, int(port)))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", cut
    cut.set()
    thread.join()


class TestServer:
    def test_run_on_a_server_has_an_address_and_an_identical_model(
        self, server: str, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        path = write_onnx(project / "float32.onnx", seed=0)
        with track(project, name="tiny_kd", stage="distill") as run:
            run.log_epoch(1, {"train/loss": 1.0})
            run.log_onnx(path, name="tiny_kd", step=1, metrics={"size_mb": 0.1})

        store = connect(project)
        assert run.url == f"{server}/#/experiments/{store.experiment_id}/runs/{run.id}"
        assert stored(store, run.id).info.artifact_uri.startswith("mlflow-artifacts:/")
        assert model_files(store, run.id)["model.onnx"] == path.read_bytes()

    @pytest.mark.parametrize("away", [silent_server, closed_port])
    def test_training_without_its_server_ends_soon_and_sync_delivers_it_once(
        self, away: Any, server: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with away() as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            started = time.monotonic()
            run_id = train_something(project)
            assert time.monotonic() - started < 8
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert Spool(project).waiting() == [run_id]

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        store = connect(project)
        first, second = sync(project), sync(project)

        assert (first.delivered, second.delivered) == (5, 0)  # params, three epochs, end
        (run,) = store.search({"compress.origin": run_id or ""})
        assert history(store, run.info.run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, 0.33333)]
        assert run.data.params["method"] == "kd"
        assert run.info.status == "FINISHED"
        assert Spool(project).waiting() == []

    def test_server_lost_while_training_costs_seconds_and_no_point(
        self, server: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with relay(server) as (address, cut):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            started = time.monotonic()
            with track(project, name="tiny_kd", stage="distill") as run:
                for epoch in range(1, 7):
                    run.log_epoch(epoch, {"train/loss": 1.0 / epoch})
                    if epoch == 3:
                        cut.set()
                        time.sleep(0.2)
            assert time.monotonic() - started < 8
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"tracking: lost {address}")

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        store = connect(project)
        assert [step for step, _ in history(store, run.id or "", "train/loss")] == [1, 2, 3]
        report = sync(project)

        assert report.delivered == 4  # three epochs and the end
        assert [step for step, _ in history(store, run.id or "", "train/loss")] == [1, 2, 3, 4, 5, 6]
        assert stored(store, run.id).info.status == "FINISHED"

    def test_stages_after_a_server_came_back_meet_in_the_run_that_waited(
        self, server: str, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with closed_port() as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            run_id = train_something(project)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        with track(project, name="tiny_kd", stage="evaluate", run_id=run_id) as run:
            run.log_metrics({"accuracy_top1": 0.9})
        sync(project)

        store = connect(project)
        (found,) = store.search({"compress.origin": run_id or ""})
        assert found.info.run_id == run.id
        assert {"train/loss", "accuracy_top1"} <= found.data.metrics.keys()

    def test_model_exported_while_the_server_was_away_is_delivered(
        self, server: str, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_onnx(project / "float32.onnx", seed=0)
        with closed_port() as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            with track(project, name="tiny_kd", stage="export") as run:
                run.log_onnx(path, name="tiny_kd", example=np.zeros((1, SIZE, SIZE, 3), np.uint8))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        sync(project)

        store = connect(project)
        (found,) = store.search({"compress.origin": run.id or ""})
        assert model_files(store, found.info.run_id)["model.onnx"] == path.read_bytes()


class TestSpool:
    def test_interrupted_delivery_keeps_what_was_not_sent(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path)
        for number in range(4):
            spool.append("run", {"number": number})
        sent: list[int] = []

        def send_two(event: dict[str, Any]) -> None:
            if len(sent) == 2:
                raise ConnectionError
            sent.append(event["number"])

        with pytest.raises(ConnectionError):
            spool.drain("run", send_two)
        spool.append("run", {"number": 4})
        spool.drain("run", lambda event: sent.append(event["number"]))

        assert sent == [0, 1, 2, 3, 4]
        assert spool.waiting() == []

    def test_line_that_a_killed_process_left_half_written_is_skipped(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path)
        spool.append("run", {"number": 0})
        file = next((tmp_path / ".work" / "mlflow_spool").glob("*.jsonl"))
        file.write_text(file.read_text() + '{"numb')
        sent: list[dict[str, Any]] = []

        spool.drain("run", sent.append)

        assert sent == [{"number": 0}]

    def test_events_that_cannot_even_wait_are_said_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / ".work").write_text("a file where the folder should be")
        with closed_port() as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            train_something(tmp_path)

        assert [line.split(" (")[0] for line in tracking_lines(capsys)] == [
            f"tracking: cannot use {address}",
            "tracking: events are lost",
        ]


def test_store_is_created_once_and_ensuring_it_again_keeps_it(project: Path) -> None:
    ensure_store(project)
    run_id = train_something(project)
    ensure_store(project)

    assert stored(connect(project), run_id).info.run_id == run_id


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = (
        "import sys, pipelines.tracking\n"
        "from pipelines.tracking import registry, sync, view\n"
        "print([name for name in ('mlflow', 'torch', 'onnx', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
