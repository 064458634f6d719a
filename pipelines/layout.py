"""Where every stage finds and leaves its files, relative to the project's folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TEACHER = "teacher"
"""Name of the teacher wherever students have theirs."""
QUANTIZATION_AWARE = "quantization_aware"
"""Name of what is trained with rounding: of the row's setting, of the folder, and in training.json."""
SLUG = re.compile(r"[a-z0-9_]+")
"""Names of students: they become names of folders, stages and files."""


class Layout(NamedTuple):
    """Paths of one project. dvc.yaml names the same ones; a test holds the two together."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def prepared(self) -> Path:
        return self.root / "data" / "prepared"

    @property
    def student_names(self) -> Path:
        """Note that all names of students are harmless."""
        return self.root / "data" / "student_names.json"

    @property
    def teacher_logits(self) -> Path:
        return self.root / "data" / "teacher_logits"

    @property
    def teacher(self) -> Path:
        return self.model(TEACHER)

    def model(self, name: str) -> Path:
        """Folder of trained networks: the teacher's artifact, or a student's `seed_<k>/{last,best}` artifacts."""
        return self.root / "models" / name

    def trained(self, name: str, seed: int, weights: str) -> Path:
        """Artifact folder of one training run; `weights` is `last`, `best` or `quantization_aware`."""
        return self.model(name) / f"seed_{seed}" / weights

    def exported(self, name: str) -> Path:
        """Folder with a network's ONNX files and export.json."""
        return self.root / "exports" / name

    def results(self, name: str) -> Path:
        """Folder with what was recorded and measured about a network."""
        return self.root / "results" / name

    def run(self, name: str) -> Path:
        """File with the tracking run's id; an output of the training stage, so later stages depend on it."""
        return self.results(name) / "run.json"

    @property
    def table(self) -> Path:
        return self.root / "metrics" / "students.json"

    @property
    def champion(self) -> Path:
        return self.root / "metrics" / "champion.json"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def deploy(self) -> Path:
        return self.root / "deploy"

    def package(self, name: str) -> Path:
        """Where `compress package` writes a deploy folder unless it is told otherwise."""
        return self.root / "packages" / name

    def work(self, stage: str) -> Path:
        """Checkpoints live here, outside DVC's outputs: DVC deletes those before it runs a stage again."""
        return self.root / ".work" / stage
