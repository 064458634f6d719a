"""Stage teacher: train the big network or load it, and measure it before any student starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from compress.artifact import save_model
from compress.batches import TrainingData
from compress.data.prepared import PreparedData, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.errors import ModelError, ParamsError
from compress.files import write_record
from compress.fingerprint import fingerprint
from compress.models import check_classes, source_classes
from compress.ranks import Ranks
from compress.settings import Settings
from compress.train import validate
from compress.training_state import EpochReport, TrainSettings
from pipelines.absence import leave_note
from pipelines.finished_work import keep_training
from pipelines.layout import TEACHER, Layout
from pipelines.params import load_params
from pipelines.saved_networks import card_of, save_networks
from pipelines.settings import TeacherSettings
from pipelines.torchrun import ranks_of_stage
from pipelines.trained import Trained, write_training_files
from pipelines.training import (
    Job,
    build_for,
    track_data,
    tracked_training,
    train,
)


class TeacherParams(Settings):
    """Sections that this stage reads."""

    views: ViewSettings = ViewSettings()
    teacher: TeacherSettings | None


def run(root: Path) -> None:
    """Leave the teacher's artifact with its validation accuracy, or a note that there is no teacher.

    Ranks that torchrun started train it together; what is left to do when there is no training does the first alone.

    Raises:
        ModelError: it does not fit the data, or is less accurate than `teacher.min_accuracy`.
    """
    with ranks_of_stage() as ranks:
        layout = Layout(root)
        params = load_params(TeacherParams, layout.params)
        if params.teacher is not None and (params.teacher.train is not None or ranks.is_first):
            _run(root, params.teacher, params.views, ranks)
        elif ranks.is_first:
            _leave_absence(layout)


def _run(root: Path, teacher: TeacherSettings, views_settings: ViewSettings, ranks: Ranks) -> None:
    layout = Layout(root)
    data = load_prepared(layout.prepared)
    lineage = {"data_fingerprint": data.manifest.fingerprint}
    settings: dict[str, Any] = teacher.model_dump(mode="json", exclude_none=True)
    views = views_settings.model_dump(mode="json")
    work = layout.work("teacher") / fingerprint({"settings": settings, "views": views, **lineage})[:16]
    with tracked_training(root, TEACHER, stage="teacher", work=work, lineage=lineage) as tracked:
        tracked.log_params({"student": TEACHER, **settings, "views": views})
        track_data(tracked, data.manifest)
        if teacher.train is None:
            trained = _loaded(teacher, data, layout)
        else:
            job = _job(teacher, teacher.train, data, views_settings)
            trained, state = train(job, work=work, run=tracked)
            if ranks.is_first:
                save_networks(job, state, trained, {"last": layout.teacher})
    if not ranks.is_first:
        return
    accuracy = trained.last.validation_accuracy_top1
    print(f"teacher: validation accuracy {accuracy:.2%}", flush=True)
    _require_accuracy(accuracy, teacher, len(data.manifest.classes))
    facts = {"student": TEACHER, "stage": "teacher", "settings": settings, **lineage}
    write_training_files(layout.results(TEACHER), [trained], facts)
    write_record(layout.run(TEACHER), {"run_id": tracked.id})
    keep_training(work, TEACHER)


def _leave_absence(layout: Layout) -> None:
    leave_note(layout.teacher)
    write_training_files(layout.results(TEACHER), [], {"student": None, "stage": "teacher"})
    write_record(layout.run(TEACHER), {"run_id": None})
    print("teacher: none in params.yaml; nothing to do")


def _job(teacher: TeacherSettings, settings: TrainSettings, data: PreparedData, views: ViewSettings) -> Job:
    return Job(
        label=TEACHER,
        model=teacher.model,
        method=teacher.method,
        settings=settings,
        seed=teacher.seed,
        data=TrainingData(data.split("train"), data.split("validation"), views),
        manifest=data.manifest,
        lineage={"data_fingerprint": data.manifest.fingerprint},
    )


def _loaded(teacher: TeacherSettings, data: PreparedData, layout: Layout) -> Trained:
    """Take the weights that the settings name, as they are, and measure them."""
    if not teacher.model.brings_weights:
        raise ParamsError(
            "teacher: the model brings no weights and there is no training; add teacher.train to train it, "
            "or set checkpoint (or pretrained, folder, weights) under teacher.model to load it"
        )
    classes = source_classes(teacher.model)
    if classes is not None:
        check_classes(classes, data.manifest.classes)
    network = place(build_for(teacher.model, data.manifest, replace_head=False), resolve_device("auto"))
    accuracy, loss = validate(network, data.split("validation"))
    report = EpochReport(0, 0.0, 0.0, 0.0, accuracy, loss, 0.0, 0.0)
    identity = fingerprint({"model": teacher.model.model_dump(mode="json"), "data": data.manifest.fingerprint})
    lineage = {"data_fingerprint": data.manifest.fingerprint}
    card = card_of(teacher.model, network, data.manifest, report=report, identity=identity, lineage=lineage)
    save_model(layout.teacher, network, card)
    return Trained(teacher.seed, (), 0.0, report, report, identity)


def _require_accuracy(accuracy: float, teacher: TeacherSettings, num_classes: int) -> None:
    if accuracy < teacher.min_accuracy:
        raise ModelError(
            f"the teacher's validation accuracy is {accuracy:.2%}, below teacher.min_accuracy "
            f"{teacher.min_accuracy:.2%}; train it longer, load another one, or lower the bound"
        )
    if accuracy <= 1.5 / num_classes:
        print(
            f"warning: the teacher is hardly better than chance ({1 / num_classes:.2%}); are its classes in the order "
            "of the data's, and does it expect other pixel statistics?",
            file=sys.stderr,
        )
