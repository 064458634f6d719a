"""`compress teacher-logits --plan`: what the store will cost and save, before anything is written.

Not part of the stage's module: it reads the students, on whom the store itself does not depend.
"""

from __future__ import annotations

from pathlib import Path

from compress.data.prepared import load_prepared
from compress.data.view_schedule import ViewSettings
from compress.errors import ArtifactError
from compress.methods import TeacherMethod
from compress.settings import Settings
from compress.store_plan import StorePlan, plan_store
from compress.teacher_logits import TeacherLogitsManifest, TeacherLogitsSettings, check_method_fits_store
from pipelines import teacher_logits
from pipelines.absence import is_absent
from pipelines.layout import Layout
from pipelines.params import load_params
from pipelines.settings import ComposedStudent, DistilledStudent, Student, StudentsSettings


class PlanParams(Settings):
    """Sections that the plan reads."""

    views: ViewSettings = ViewSettings()
    teacher_logits: TeacherLogitsSettings = TeacherLogitsSettings()
    students: StudentsSettings


def run(root: Path) -> None:
    """Print size, time and saving of the store that the stage would write.

    Raises:
        ParamsError: a student's method does not fit the store.
        ArtifactError: the disk has no room for it.
    """
    layout = Layout(root)
    if is_absent(layout.teacher):
        print("teacher logits: there is no teacher, so there is nothing to store")
        return
    params = load_params(PlanParams, layout.params)
    data = load_prepared(layout.prepared)
    stage = teacher_logits.TeacherLogitsParams(views=params.views, teacher_logits=params.teacher_logits)
    teacher, manifest = teacher_logits.ready(layout, data, stage)
    readers = [row for row in params.students.rows.values() if _reads_the_store(row)]
    for row in readers:
        check_method_fits_store(row.method, manifest)
    epochs = [row.train.epochs for row in readers for _ in row.seeds]
    work = teacher_logits.work_folder(layout)
    plan = plan_store(data.split("train"), teacher, manifest, work=work, epochs=epochs)
    print(f"teacher logits: {teacher}")
    print("\n".join(lines(plan, manifest)))
    if not plan.fits:
        raise ArtifactError(
            f"the store needs {plan.missing_bytes / 1e6:.1f} MB more, {plan.free_bytes / 1e6:.1f} MB are free; make "
            "room, set teacher_logits.dtype: uint8, or lower views.views_per_image"
        )


def lines(plan: StorePlan, manifest: TeacherLogitsManifest) -> list[str]:
    """The plan in words."""
    num_views, num_images, num_classes = manifest.shape
    form = manifest.dtype if manifest.top_k is None else f"{manifest.top_k} largest logits"
    found = [
        f"size: {plan.size_bytes / 1e6:.1f} MB ({num_views} views of {num_images} images, {num_classes} classes, "
        f"{form}); {plan.free_bytes / 1e6:.1f} MB are free, and DVC's cache may keep a copy of the store",
        f"time: {_duration(plan.write_seconds)} at {plan.answers_per_second:.0f} views/s, measured",
        f"saving: {_duration(plan.online_seconds)} of teacher passes in {len(plan.epochs)} training runs "
        f"({sum(plan.epochs)} epochs) become {_duration(plan.write_seconds)}: "
        + (
            f"{_duration(plan.saved_seconds)} saved"
            if plan.saved_seconds > 0
            else f"{_duration(-plan.saved_seconds)} lost; set teacher_logits.enabled: false"
        ),
    ]
    if 0 < plan.num_views_seen < num_views:
        found.append(
            f"note: the longest run sees {plan.num_views_seen} of {num_views} views; with views.views_per_image: "
            f"{plan.num_views_seen} students see the same and the store is {num_views / plan.num_views_seen:.1f} "
            "times smaller"
        )
    return found


def _reads_the_store(row: Student) -> bool:
    is_taught = isinstance(row, DistilledStudent | ComposedStudent) and isinstance(row.method, TeacherMethod)
    return is_taught and row.train.mixing is None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
