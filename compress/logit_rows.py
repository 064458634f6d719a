"""How the logits of one view become a row of a store's file, and back.

All rows of a file have one size, so that reading a view is one access to a memory map. Logits are stored, never
probabilities: those underflow.

What a form costs was measured on 2048 views of two trained CIFAR-100 teachers, as the relative error of a student's
gradient: float16 2e-4 to 2e-3, uint8 1e-3 to 2e-2. The largest logits with a uniform rest are the form of FKD (Shen and
Xing, A Fast Knowledge Distillation Framework for Visual Recognition, arXiv 2112.01528): with 16 of them 0.06 to 0.13
for losses on the teacher's probabilities as they are, 0.2 to 0.6 for losses that soften them, which live on the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Float32, UInt8

from compress.errors import ModelError
from compress.types import LogitArray

StoredType = Literal["float16", "float32", "uint8"]
ByteRows = UInt8[np.ndarray, "B R"]
"""Rows as they stand in the file, R bytes each."""
RowErrors = Float32[np.ndarray, " B"]


class RowFormat(ABC):
    """One way to store the logits of a view."""

    dtype: np.dtype[Any]
    """Of one row, in numpy's words."""

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return self.dtype.itemsize

    def encode(self, logits: LogitArray) -> ByteRows:
        """Rows for logits.

        Raises:
            ModelError: they are not finite, or too large for this format.
        """
        if not np.isfinite(logits).all():
            raise ModelError("the teacher gives logits that are not finite; check its weights and normalisation")
        with np.errstate(over="ignore"):
            rows = self._encoded(logits)
        if not np.isfinite(self.decode(rows)).all():
            raise ModelError(
                f"the teacher's logits reach {np.abs(logits).max():.3g}, more than teacher_logits.dtype "
                "holds; set teacher_logits.dtype: float32"
            )
        return rows

    @abstractmethod
    def decode(self, rows: ByteRows) -> LogitArray:
        """Logits from rows."""

    def errors(self, rows: ByteRows, logits: LogitArray) -> RowErrors:
        """Largest difference between each row and the logits it stands for, over the classes it holds a value of."""
        return np.abs(self.decode(rows) - logits).max(axis=1)

    @abstractmethod
    def _encoded(self, logits: LogitArray) -> ByteRows: ...


def row_format(dtype: StoredType, top_k: int | None, num_classes: int) -> RowFormat:
    """The format that settings ask for."""
    if top_k is not None:
        return LargestLogits(num_classes, top_k)
    return ScaledBytes(num_classes) if dtype == "uint8" else Floats(num_classes, dtype)


@final
class Floats(RowFormat):
    """Every logit as a floating-point number."""

    def __init__(self, num_classes: int, dtype: Literal["float16", "float32"]) -> None:
        self.dtype = np.dtype(({"float16": "<f2", "float32": "<f4"}[dtype], (num_classes,)))

    def decode(self, rows: ByteRows) -> LogitArray:
        return np.ascontiguousarray(rows).view(self.dtype.base).astype(np.float32)

    def _encoded(self, logits: LogitArray) -> ByteRows:
        return np.ascontiguousarray(logits.astype(self.dtype.base)).view(np.uint8)


@final
class ScaledBytes(RowFormat):
    """Each logit as one of 256 steps between the smallest and the largest of its row: off by half a step at most."""

    def __init__(self, num_classes: int) -> None:
        self.dtype = np.dtype([("lowest", "<f4"), ("step", "<f4"), ("codes", "u1", (num_classes,))])

    def decode(self, rows: ByteRows) -> LogitArray:
        fields = _as_fields(rows, self.dtype)
        return fields["lowest"][:, None] + fields["step"][:, None] * fields["codes"].astype(np.float32)

    def _encoded(self, logits: LogitArray) -> ByteRows:
        fields = np.empty(len(logits), self.dtype)
        fields["lowest"] = logits.min(axis=1)
        fields["step"] = (logits.max(axis=1) - fields["lowest"]) / np.float32(255)
        steps = np.where(fields["step"] > 0, fields["step"], 1)[:, None]  # a row of equal logits has no steps
        fields["codes"] = np.rint((logits - fields["lowest"][:, None]) / steps).clip(0, 255)
        return _as_bytes(fields)


@final
class LargestLogits(RowFormat):
    """The largest logits as float16; all other classes share their probability evenly."""

    def __init__(self, num_classes: int, num_kept: int) -> None:
        if not 0 < num_kept < num_classes:
            raise ValueError(f"{num_kept} of {num_classes} logits can not be kept")
        self._num_classes = num_classes
        self._num_kept = num_kept
        index = np.min_scalar_type(num_classes - 1).newbyteorder("<")
        self.dtype = np.dtype([("logits", "<f2", (num_kept,)), ("rest", "<f2"), ("classes", index, (num_kept,))])

    def decode(self, rows: ByteRows) -> LogitArray:
        fields = _as_fields(rows, self.dtype)
        logits = np.repeat(fields["rest"].astype(np.float32)[:, None], self._num_classes, axis=1)
        np.put_along_axis(logits, fields["classes"].astype(np.int64), fields["logits"].astype(np.float32), axis=1)
        return logits

    def errors(self, rows: ByteRows, logits: LogitArray) -> RowErrors:
        fields = _as_fields(rows, self.dtype)
        kept = np.take_along_axis(logits, fields["classes"].astype(np.int64), axis=1)
        return np.abs(fields["logits"].astype(np.float32) - kept).max(axis=1)

    def _encoded(self, logits: LogitArray) -> ByteRows:
        kept = np.sort(np.argpartition(logits, -self._num_kept, axis=1)[:, -self._num_kept :], axis=1)
        others = logits.copy()
        np.put_along_axis(others, kept, -np.inf, axis=1)
        largest = others.max(axis=1)
        log_sum = largest + np.log(np.exp(others - largest[:, None]).sum(axis=1))
        fields = np.empty(len(logits), self.dtype)
        fields["logits"] = np.take_along_axis(logits, kept, axis=1)
        fields["rest"] = log_sum - np.log(self._num_classes - self._num_kept)
        fields["classes"] = kept
        return _as_bytes(fields)


def probability_error(stored: LogitArray, logits: LogitArray) -> float:
    """Largest difference of a class probability at temperature 1."""
    return float(np.abs(_softmax(stored) - _softmax(logits)).max())


def _softmax(logits: LogitArray) -> LogitArray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _as_fields(rows: ByteRows, dtype: np.dtype[Any]) -> np.ndarray:
    return np.ascontiguousarray(rows).view(dtype)[:, 0]


def _as_bytes(fields: np.ndarray) -> ByteRows:
    return fields.view(np.uint8).reshape(len(fields), fields.dtype.itemsize)
