"""Which source files decide what training computes: a checkpoint of other code is not continued."""

from __future__ import annotations

import inspect
from pathlib import Path

import compress
from compress.fingerprint import fingerprint_of_files
from compress.settings import Settings

CODE = (
    "batch_source",
    "batches",
    "cuda_graph",
    "data.color_jitter",
    "data.counter_hash",
    "data.decoding",
    "data.device_views",
    "data.mixing",
    "data.pad_crop",
    "data.picture_operations",
    "data.prepared",
    "data.preprocessing",
    "data.rand_augment",
    "data.random_erasing",
    "data.resized_crop",
    "data.threads",
    "data.view_rule",
    "data.view_schedule",
    "data.views",
    "device",
    "distributed",
    "kept_state",
    "logit_rows",
    "methods.base",
    "micro_batches",
    "non_finite",
    "objective",
    "optimization",
    "prefetch",
    "ranks",
    "residence",
    "resident",
    "resident_teacher",
    "steps",
    "synchronized_norm",
    "teacher_logits",
    "teacher_pass",
    "tensors",
    "train",
    "training_state",
    "training_step",
)
"""Modules of the library that decide what training computes, beside the networks' and the method's own."""


def code_fingerprint(method: Settings) -> str:
    """Hash of the source files that decide what training computes."""
    package = Path(compress.__file__).parent
    files = {package / f"{name.replace('.', '/')}.py" for name in CODE}
    networks = set((package / "models").glob("*.py"))
    return fingerprint_of_files(files | networks | _method_files(method))


def _method_files(method: Settings) -> set[Path]:
    """Source files of a method and of the methods it is made of."""
    values = [value for _, value in method]
    parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    inner = [_method_files(part) for part in parts if isinstance(part, Settings)]
    return {Path(inspect.getfile(type(method)))}.union(*inner)
