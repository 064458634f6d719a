"""From a folder of images and a big classifier to a small, measured ONNX student.

The names below are the library's public face. They are imported on first use, so that a light program
(a command's --help, the selection stage) does not pay for torch. Three functions share a module's name and are imported
from there: compress.evaluate.evaluate, compress.benchmark.benchmark, compress.select.select.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.artifact import load_model, save_model
    from compress.batches import TrainingData
    from compress.data import DataSettings
    from compress.data.prepare import prepare
    from compress.data.prepared import load_prepared
    from compress.data.view_schedule import ViewSettings
    from compress.deploy import write_deploy_folder
    from compress.errors import CompressError
    from compress.export import export_onnx
    from compress.methods import (
        CRD,
        DIST,
        DKD,
        ITRD,
        KD,
        NKD,
        TTM,
        USKD,
        WTTM,
        Combination,
        CrossEntropy,
        LabelSmoothing,
        LogitStandardization,
        TfKDReg,
        TfKDSelf,
        TfNKD,
        ViTKD,
    )
    from compress.models import build_network
    from compress.parity import assert_parity
    from compress.runtime import load_predictor
    from compress.teacher_logits import OnlineTeacher, open_teacher_logits
    from compress.teacher_logits_writer import write_teacher_logits
    from compress.train import train_epochs, train_together
    from compress.training_state import TrainSettings, new_training_state

_HOMES = {
    "CompressError": "compress.errors",
    "DataSettings": "compress.data",
    "prepare": "compress.data.prepare",
    "load_prepared": "compress.data.prepared",
    "ViewSettings": "compress.data.view_schedule",
    "build_network": "compress.models",
    "load_model": "compress.artifact",
    "save_model": "compress.artifact",
    "CRD": "compress.methods",
    "DIST": "compress.methods",
    "DKD": "compress.methods",
    "ITRD": "compress.methods",
    "USKD": "compress.methods",
    "Combination": "compress.methods",
    "LogitStandardization": "compress.methods",
    "TfKDReg": "compress.methods",
    "TfKDSelf": "compress.methods",
    "TfNKD": "compress.methods",
    "ViTKD": "compress.methods",
    "KD": "compress.methods",
    "NKD": "compress.methods",
    "TTM": "compress.methods",
    "WTTM": "compress.methods",
    "CrossEntropy": "compress.methods",
    "LabelSmoothing": "compress.methods",
    "OnlineTeacher": "compress.teacher_logits",
    "write_teacher_logits": "compress.teacher_logits_writer",
    "open_teacher_logits": "compress.teacher_logits",
    "TrainSettings": "compress.training_state",
    "TrainingData": "compress.batches",
    "new_training_state": "compress.training_state",
    "train_epochs": "compress.train",
    "train_together": "compress.train",
    "export_onnx": "compress.export",
    "load_predictor": "compress.runtime",
    "assert_parity": "compress.parity",
    "write_deploy_folder": "compress.deploy",
}

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
    "CompressError",
    "CrossEntropy",
    "DataSettings",
    "LabelSmoothing",
    "LogitStandardization",
    "OnlineTeacher",
    "TfKDReg",
    "TfKDSelf",
    "TfNKD",
    "TrainSettings",
    "TrainingData",
    "ViTKD",
    "ViewSettings",
    "assert_parity",
    "build_network",
    "export_onnx",
    "load_model",
    "load_predictor",
    "load_prepared",
    "new_training_state",
    "open_teacher_logits",
    "prepare",
    "save_model",
    "train_epochs",
    "train_together",
    "write_deploy_folder",
    "write_teacher_logits",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
