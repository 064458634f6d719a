"""Real DVC runs params files without a teacher, with students that teach students, and with methods made of parts."""

from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.dvc_repository import make_repository, outdated, reproduced
from tests.pipelines.project import params, write_params

pytestmark = pytest.mark.slow
SMALL = {"source": "cnn", "channels": [4, 4]}
BRIEF = {"epochs": 1, "batch_size": 16, "precision": "float32", "threads": 1}
ALONE = {"model": SMALL, "method": {"name": "cross_entropy"}, "train": BRIEF}
BORN_AGAIN = {"teacher": "alone", "model": SMALL, "method": {"name": "tf_kd_self"}, "train": BRIEF}
CRD = {"name": "crd", "num_negatives": 8}


def combined(logits: str) -> dict[str, Any]:
    method = {"name": "combination", "logits": {"name": logits}, "features": [CRD]}
    return {"model": SMALL, "method": method, "train": BRIEF}


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# edited\n")


def test_a_file_without_teacher_runs_and_the_self_taught_row_follows_its_teacher(tmp_path: Path) -> None:
    students = {"teacher_free": {"alone": ALONE}, "self_taught": {"born_again": BORN_AGAIN}}
    values = {**params(tmp_path / "pictures"), "teacher": None, "students": students}
    root = make_repository(tmp_path, values)
    assert {"distill_free@alone", "distill_self@born_again", "select"} <= reproduced(root)
    assert (root / "deploy" / "model.onnx").is_file()
    students["teacher_free"]["alone"] = {**ALONE, "train": {**BRIEF, "batch_size": 8}}
    write_params(root, values)
    assert outdated(root) == {"prepare_names", "distill_free@alone", "select"}
    (root / "models" / "alone" / "seed_0" / "best" / "card.json").write_text("{}")
    assert "distill_self@born_again" in outdated(root)


NEW_METHOD = '''"""The squared distance of logits, as somebody may add it."""

from typing import Literal

from compress.methods.base import TeacherMethod, full_precision
from compress.types import Labels, Logits, Scalar


class SquaredDistance(TeacherMethod):
    """Match the logits themselves."""

    name: Literal["squared_distance"] = "squared_distance"

    def soft(self, student: Logits, teacher: Logits, labels: Labels) -> Scalar:
        return (full_precision(student) - full_precision(teacher.detach())).square().mean()
'''


def add_method(methods: Path) -> None:
    """A file, an import and a place in a union."""
    (methods / "squared_distance.py").write_text(NEW_METHOD)
    union = methods / "logit_methods.py"
    text = union.read_text().replace("Annotated[KD", "Annotated[SquaredDistance | KD")
    start = text.index("from compress.methods")
    line = "from compress.methods.squared_distance import SquaredDistance\n"
    union.write_text(text[:start] + line + text[start:])


def test_methods_made_of_methods_and_methods_that_somebody_added_run(tmp_path: Path) -> None:
    """A combination follows each of its parts; a new method is known to loop, command line and dvc.yaml as it is."""
    students = {
        "composed": {"both": combined("wttm")},
        "distilled": {"added": {"model": SMALL, "method": {"name": "squared_distance"}, "train": BRIEF}},
    }
    root = make_repository(tmp_path, {**params(tmp_path / "pictures"), "students": students})
    methods = root / "compress" / "methods"
    add_method(methods)
    assert {"distill_composed@both", "distill@added", "select"} <= reproduced(root)
    edit(methods / "wttm.py")
    assert outdated(root) == {"distill_composed@both"}
    edit(methods / "squared_distance.py")
    assert outdated(root) == {"distill_composed@both", "distill@added"}
