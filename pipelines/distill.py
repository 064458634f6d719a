"""Stage distill: train one student, once for each of its seeds."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.batches import TrainingData
from compress.data.prepared import PreparedData, load_prepared
from compress.data.view_schedule import ViewSettings
from compress.device import resolve_device
from compress.errors import ParamsError
from compress.files import read_json, write_record
from compress.fingerprint import fingerprint
from compress.methods import TeacherMethod
from compress.ranks import ALONE, Ranks, agreed, ranks_here, wait_for_all
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
from pipelines.finished_work import keep_training
from pipelines.layout import Layout
from pipelines.online_teacher import online_teacher
from pipelines.params import load_params
from pipelines.settings import SelfTaughtStudent, Student, StudentsSettings, TeacherFreeStudent
from pipelines.stored_answers import stored_answers
from pipelines.torchrun import ranks_of_stage
from pipelines.tracking import Run
from pipelines.trained import write_training_files
from pipelines.training import (
    Job,
    Lesson,
    Lineage,
    track_data,
    tracked_training,
    train,
    train_side_by_side,
)


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
    work: Path
    """Where its checkpoints live."""
    lineage: Lineage


def run(root: Path, name: str) -> None:
    """Train the student `name` of params.yaml and leave its artifacts, its history and the id of its tracking run.

    Ranks that torchrun started train it together.
    """
    with ranks_of_stage() as ranks:
        _run(root, name, ranks)


def _run(root: Path, name: str, ranks: Ranks) -> None:
    layout = Layout(root)
    params = load_params(DistillParams, layout.params)
    data = load_prepared(layout.prepared)
    plan = _plan(name, params, data, _Teachers(params, data, layout))
    with _tracked(root, plan, params.views) as tracked:
        trained = [
            train(
                job,
                work=plan.work,
                folders={which: layout.trained(name, job.seed, which) for which in ("last", "best")},
                run=tracked,
            )
            for job in plan.jobs
        ]
    if not ranks.is_first:
        return
    facts = {"student": name, "stage": "distill", "settings": plan.settings, **plan.lineage}
    write_training_files(layout.results(name), trained, facts)
    write_record(layout.run(name), {"run_id": tracked.id})
    keep_training(plan.work, name)  # until export has read the networks they are safe in their checkpoints


def run_all(root: Path) -> None:
    """Train all students that are not up to date side by side, to checkpoints from which their stages finish at once.

    Students of one seed share batches and a live teacher; stored answers are shared by all. Students that other
    students teach need those first: their own stages train them.

    Raises:
        ParamsError: several ranks train on a CPU, and a row does not say with how many threads.
    """
    with ranks_of_stage() as ranks:
        _run_all(root, ranks)


def _run_all(root: Path, ranks: Ranks) -> None:
    layout = Layout(root)
    params = load_params(DistillParams, layout.params)
    data = load_prepared(layout.prepared)
    teachers = _Teachers(params, data, layout)
    names = [name for name in params.students.rows if name not in params.students.self_taught]
    plans = [_plan(name, params, data, teachers) for name in names]
    outdated = agreed([plan.name for plan in plans if not _is_finished(plan, layout)])
    pending = [plan for plan in plans if plan.name in outdated]
    if ranks != ALONE:
        _require_threads(pending)
    print(f"{len(pending)} of {len(names)} students to train: {', '.join(plan.name for plan in pending) or 'none'}")
    with ExitStack() as stack:
        tracked = {plan.name: stack.enter_context(_tracked(root, plan, params.views)) for plan in pending}
        train_side_by_side([Lesson(job, plan.work, tracked[plan.name]) for plan in pending for job in plan.jobs])
    print("the stages take over from here: dvc repro")


def _plan(name: str, params: DistillParams, data: PreparedData, teachers: _Teachers) -> Plan:
    student = params.students.row(name)
    answers, lineage = teachers.of(student)
    jobs = tuple(_job(name, student, seed, data, params.views, answers, lineage) for seed in student.seeds)
    work = teachers.layout.work("distill") / fingerprint({"jobs": [job.fingerprint for job in jobs]})[:16]
    return Plan(name, student.model_dump(mode="json", exclude_none=True), jobs, work, lineage)


@contextmanager
def _tracked(root: Path, plan: Plan, views: ViewSettings) -> Generator[Run]:
    with tracked_training(root, plan.name, stage="distill", work=plan.work, lineage=plan.lineage) as tracked:
        tracked.log_params({"student": plan.name, **plan.settings, "views": views.model_dump(mode="json")})
        track_data(tracked, plan.jobs[0].manifest)
        yield tracked


def _is_finished(plan: Plan, layout: Layout) -> bool:
    """Whether the last run of its stage left exactly these jobs' results."""
    path = layout.results(plan.name) / "training.json"
    if not path.is_file():
        return False
    seeds = read_json(path, made_by="distill")["seeds"]
    return [seed["fingerprint"] for seed in seeds] == [job.fingerprint for job in plan.jobs]


def _require_threads(plans: Sequence[Plan]) -> None:
    """Raise ParamsError if the stages would not find these checkpoints: torchrun gives processes fewer threads."""
    for settings, name in ((job.settings, plan.name) for plan in plans for job in plan.jobs):
        if settings.threads is None and resolve_device(settings.device).type == "cpu":
            raise ParamsError(
                f"{name}: under torchrun on a CPU the row has to say how many threads each process takes, or dvc repro "
                "would use as many as there are cores and train again; set train.threads: 1"
            )


class _Teachers:
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
