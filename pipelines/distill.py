"""Stage distill: train one student, once for each of its seeds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from compress.artifact import load_model
from compress.data.prepared import PreparedData, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import place, resolve_device
from compress.files import write_json
from compress.fingerprint import fingerprint
from compress.settings import Settings
from compress.teacher_logits import OnlineTeacher, TeacherAnswers, open_teacher_logits, read_manifest
from compress.train import TrainingData
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.settings import DistilledStudent, StudentsSettings, TeacherFreeStudent
from pipelines.training import Job, Lineage, track_data, tracked_training, train, write_training_files


class DistillParams(Settings):
    """Sections that every student reads."""

    views: ViewSettings = ViewSettings()
    students: StudentsSettings


def run(root: Path, name: str) -> None:
    """Train the student `name` of params.yaml and leave its artifacts, its history and the id of its tracking run."""
    layout = Layout(root)
    params = load_params(DistillParams, layout.params)
    student = params.students.row(name)
    data = load_prepared(layout.prepared)
    answers, lineage = _teacher_of(student, data, params.views, layout)
    jobs = [_job(name, student, seed, data, params.views, answers, lineage) for seed in student.seeds]
    work = layout.work("distill") / fingerprint({"jobs": [job.fingerprint for job in jobs]})[:16]
    settings: dict[str, Any] = student.model_dump(mode="json", exclude_none=True)
    with tracked_training(root, name, stage="distill", work=work, lineage=lineage) as tracked:
        tracked.log_params({"student": name, **settings, "views": params.views.model_dump(mode="json")})
        track_data(tracked, data.manifest)
        trained = [
            train(
                job,
                work=work,
                folders={which: layout.trained(name, job.seed, which) for which in ("last", "best")},
                run=tracked,
            )
            for job in jobs
        ]
    write_training_files(
        layout.results(name), trained, {"student": name, "stage": "distill", "settings": settings, **lineage}
    )
    write_json(layout.run(name), {"run_id": tracked.id})
    shutil.rmtree(work)  # only now: until every seed is stored, a finished one is safe in its checkpoint


def _teacher_of(
    student: DistilledStudent | TeacherFreeStudent, data: PreparedData, views: ViewSettings, layout: Layout
) -> tuple[TeacherAnswers | None, Lineage]:
    """Where this student's teacher answers come from, and the hashes of what it learns from."""
    lineage = {"data_fingerprint": data.manifest.fingerprint}
    if isinstance(student, TeacherFreeStudent):
        return None, lineage
    stored = read_manifest(layout.teacher_logits)
    network, card = load_model(layout.teacher)
    lineage["teacher_sha256"] = card.saved_sha256
    if not stored.enabled:
        device = resolve_device(student.train.device)
        return OnlineTeacher(place(network, device)), lineage
    expected = stored.model_copy(
        update={"teacher_sha256": card.saved_sha256, "data_fingerprint": data.manifest.fingerprint, "views": views}
    )
    lineage["teacher_logits_sha256"] = stored.sha256
    return open_teacher_logits(layout.teacher_logits, expected), lineage


def _job(
    name: str,
    student: DistilledStudent | TeacherFreeStudent,
    seed: int,
    data: PreparedData,
    views: ViewSettings,
    answers: TeacherAnswers | None,
    lineage: Lineage,
) -> Job:
    first, *further = student.seeds
    return Job(
        label=f"{name} seed {seed}" if further else name,
        model=student.model,
        method=student.method,
        settings=student.train,
        seed=seed,
        data=TrainingData(data.split("train"), data.split("validation"), views),
        manifest=data.manifest,
        lineage=lineage,
        teacher=answers,
        curve_seed=None if seed == first else seed,
    )
