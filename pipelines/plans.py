"""What training a student takes: its jobs, its teacher, and whether it was done already."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.batches import TrainingData
from compress.data.prepared import PreparedData
from compress.data.view_schedule import ViewSettings
from compress.device import resolve_device
from compress.errors import ParamsError
from compress.files import read_json
from compress.fingerprint import fingerprint
from compress.methods import TeacherMethod
from compress.ranks import ALONE, Ranks, ranks_here, wait_for_all
from compress.settings import Settings
from compress.teacher_logits import (
    OnlineTeacher,
    StoredTeacher,
    TeacherAnswers,
    check_method_fits_store,
    open_teacher_logits,
    read_manifest,
)
from pipelines.absence import is_absent
from pipelines.layout import QUANTIZATION_AWARE, Layout
from pipelines.online_teacher import online_teacher
from pipelines.rounding import check_can_round, rounding_after
from pipelines.settings import SelfTaughtStudent, Student, StudentsSettings, TeacherFreeStudent
from pipelines.stored_answers import stored_answers
from pipelines.tracking import Run
from pipelines.training import Job, Lineage, track_data, tracked_training


class DistillParams(Settings):
    """Sections that every student reads."""

    views: ViewSettings = ViewSettings()
    students: StudentsSettings


@dataclass(frozen=True)
class Plan:
    """A student with everything that decides how it comes out."""

    name: str
    settings: dict[str, Any]
    jobs: tuple[Job, ...]
    """One for each seed."""
    roundings: tuple[Job, ...]
    """The training after each of them, with rounding; none where the row does not ask for it."""
    work: Path
    """Where its checkpoints live."""
    lineage: Lineage


def plan_of(name: str, params: DistillParams, data: PreparedData, teachers: Teachers) -> Plan:
    student = params.students.row(name)
    answers, lineage = teachers.of(student)
    jobs = tuple(_job(name, student, seed, data, params.views, answers, lineage) for seed in student.seeds)
    rounding = student.quantization_aware
    roundings = () if rounding is None else tuple(rounding_after(job, rounding) for job in jobs)
    work = teachers.layout.work("distill") / fingerprint({"jobs": [job.fingerprint for job in jobs]})[:16]
    return Plan(name, student.model_dump(mode="json", exclude_none=True), jobs, roundings, work, lineage)


@contextmanager
def tracked_plan(root: Path, plan: Plan, views: ViewSettings) -> Generator[Run]:
    with tracked_training(root, plan.name, stage="distill", work=plan.work, lineage=plan.lineage) as tracked:
        tracked.log_params({"student": plan.name, **plan.settings, "views": views.model_dump(mode="json")})
        track_data(tracked, plan.jobs[0].manifest)
        yield tracked


def check_rounding(plan: Plan, ranks: Ranks) -> None:
    """Before the long training rather than after it."""
    if not plan.roundings:
        return
    if ranks != ALONE:
        raise ParamsError(
            f"{plan.name}: quantization_aware trains in one process; run `compress distill --all` under torchrun, "
            "which leaves it out, and then dvc repro without"
        )
    check_can_round(plan.jobs[0])


def is_finished(plan: Plan, layout: Layout) -> bool:
    """Whether the last run of its stage left exactly these jobs' results."""
    path = layout.results(plan.name) / "training.json"
    if not path.is_file():
        return False
    seeds = read_json(path, made_by="distill")["seeds"]
    found = [seed["fingerprint"] for seed in seeds]
    found += [seed[QUANTIZATION_AWARE]["fingerprint"] for seed in seeds if QUANTIZATION_AWARE in seed]
    return found == [job.fingerprint for job in (*plan.jobs, *plan.roundings)]


class Teachers:
    """Who teaches which student; each teacher is loaded once."""

    def __init__(self, params: DistillParams, data: PreparedData, layout: Layout) -> None:
        self.params, self.data, self.layout = params, data, layout
        self._stored: StoredTeacher | None = None
        self._online: dict[tuple[Any, ...], tuple[OnlineTeacher, Lineage]] = {}

    def of(self, student: Student) -> tuple[TeacherAnswers | None, Lineage]:
        """Where this student's teacher answers come from, and the hashes of what it learns from.

        Raises:
            ParamsError: the row needs a teacher, and params.yaml says that there is none.
        """
        lineage = {"data_fingerprint": self.data.manifest.fingerprint}
        if isinstance(student, TeacherFreeStudent):
            return None, lineage
        if isinstance(student, SelfTaughtStudent):
            first_seed = self.params.students.row(student.teacher).seeds[0]
            return self._asked(self.layout.trained(student.teacher, first_seed, "best"), student, lineage)
        if is_absent(self.layout.teacher):
            raise ParamsError(
                "this student learns from a teacher, and params.yaml says teacher: null; give it a teacher, or move "
                "the row to students.teacher_free or students.self_taught"
            )
        stored = read_manifest(self.layout.teacher_logits)
        if not stored.enabled or not isinstance(student.method, TeacherMethod):
            return self._asked(self.layout.teacher, student, lineage)
        if self._stored is None:
            self._stored = self._opened_store(student)
        manifest = self._stored.manifest
        check_method_fits_store(student.method, manifest)
        lineage |= {"teacher_sha256": manifest.teacher_sha256, "teacher_logits_sha256": manifest.sha256}
        return self._stored, lineage

    def _opened_store(self, student: Student) -> StoredTeacher:
        """Verified by one rank on each machine, before the others read it."""
        ranks, folder, store = ranks_here(), self.layout.teacher_logits, None
        if ranks.rank_here == 0:
            device = resolve_device(student.train.device)
            store = stored_answers(self.layout, self.data, self.params.views, device=device)
        wait_for_all()
        return store or open_teacher_logits(folder, read_manifest(folder), verify_rows=False)

    def _asked(self, folder: Path, student: Student, lineage: Lineage) -> tuple[TeacherAnswers, Lineage]:
        """A teacher that runs while its student trains."""
        key = folder, isinstance(student.method, TeacherMethod), student.train.device, student.train.threads
        if key not in self._online:
            self._online[key] = online_teacher(self.layout, folder, student, data=self.data, views=self.params.views)
        teacher, of_teacher = self._online[key]
        return teacher, {**lineage, **of_teacher}


def _job(
    name: str,
    student: Student,
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
