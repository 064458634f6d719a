"""Distillation methods, one file each. They know only tensors; the unions are the registry.

Adding a method: its file, an import and a place in a union, a reference test. The file carries the method's name:
the pipeline depends on `compress/methods/<name>.py`, so editing one method reruns only its students.
"""

from typing import Annotated

from pydantic import Field

from compress.methods.base import FeatureMethod, Method, SelfFeatureMethod, TeacherFreeMethod, TeacherMethod
from compress.methods.combination import Combination
from compress.methods.crd import CRD
from compress.methods.cross_entropy import CrossEntropy
from compress.methods.dist import DIST
from compress.methods.dkd import DKD
from compress.methods.itrd import ITRD
from compress.methods.kd import KD
from compress.methods.label_smoothing import LabelSmoothing
from compress.methods.logit_methods import LogitMethod
from compress.methods.logit_standardization import LogitStandardization
from compress.methods.nkd import NKD
from compress.methods.tf_kd_reg import TfKDReg
from compress.methods.tf_kd_self import TfKDSelf
from compress.methods.tf_nkd import TfNKD
from compress.methods.ttm import TTM
from compress.methods.uskd import USKD
from compress.methods.vitkd import ViTKD
from compress.methods.wttm import WTTM

WithoutTeacher = Annotated[CrossEntropy | LabelSmoothing | TfNKD | TfKDReg | USKD, Field(discriminator="name")]
"""The plain baseline and methods that need no teacher."""
Composed = Annotated[LogitStandardization | CRD | ITRD | ViTKD | Combination, Field(discriminator="name")]
"""Methods made of parts: of other methods, or of features of student and teacher."""

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "ITRD",
    "KD",
    "NKD",
    "TTM",
    "USKD",
    "WTTM",
    "Combination",
    "Composed",
    "CrossEntropy",
    "FeatureMethod",
    "LabelSmoothing",
    "LogitMethod",
    "LogitStandardization",
    "Method",
    "SelfFeatureMethod",
    "TeacherFreeMethod",
    "TeacherMethod",
    "TfKDReg",
    "TfKDSelf",
    "TfNKD",
    "ViTKD",
    "WithoutTeacher",
]
