"""Distillation methods, one file each. They know only tensors; the unions are the registry.

Adding a method: its file, an import and a place in a union, a reference test. The file carries the method's name:
the pipeline depends on `compress/methods/<name>.py`, so editing one method reruns only its students.
"""

from typing import Annotated

from pydantic import Field

from compress.methods.base import FeatureMethod, Method, SelfFeatureMethod, TeacherFreeMethod, TeacherMethod
from compress.methods.cross_entropy import CrossEntropy
from compress.methods.kd import KD
from compress.methods.label_smoothing import LabelSmoothing
from compress.methods.logit_methods import LogitMethod
from compress.methods.nkd import NKD
from compress.methods.ttm import TTM
from compress.methods.wttm import WTTM

WithTeacher = LogitMethod
"""Methods that learn from a teacher's logits."""
WithoutTeacher = Annotated[CrossEntropy | LabelSmoothing, Field(discriminator="name")]
"""The plain baseline and methods that need no teacher."""

__all__ = [
    "KD",
    "NKD",
    "TTM",
    "WTTM",
    "CrossEntropy",
    "FeatureMethod",
    "LabelSmoothing",
    "LogitMethod",
    "Method",
    "SelfFeatureMethod",
    "TeacherFreeMethod",
    "TeacherMethod",
    "WithTeacher",
    "WithoutTeacher",
]
