"""A teacher's stored answers in the memory of the training device, so that no step waits for the host."""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from compress.logit_rows import Floats, ScaledBytes
from compress.teacher_logits import StoredTeacher, TeacherAnswers
from compress.tensors import to_device
from compress.types import FloatImages, IndexArray, Logits

ROWS_AT_ONCE = 1 << 16


class Places(NamedTuple):
    """Which views a batch consists of, on the training device."""

    indices: Int64[Tensor, " B"]
    slots: Int64[Tensor, " B"]


@final
class ResidentTeacher(TeacherAnswers):
    """The same answers as those of the store that it is made from, bit for bit."""

    def __init__(self, stored: StoredTeacher, device: torch.device) -> None:
        """Copy all rows to the device.

        Raises:
            ValueError: rows of this form are decoded on the host only; ask `is_decoded_on_device` first.
        """
        if not is_decoded_on_device(stored):
            raise ValueError(f"rows of {stored.path} are decoded on the host only")
        self.manifest = stored.manifest
        self._format = stored.manifest.row_format
        self._rows = _copied(stored.rows, device)
        # Students that train side by side ask about the very same places one after the other.
        self._last: tuple[Places, Logits] | None = None

    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        np.ravel_multi_index((slots, indices), self.manifest.shape[:2])  # raises for places outside the store
        device = self._rows.device
        return self.at(Places(to_device(torch.from_numpy(indices), device), to_device(torch.from_numpy(slots), device)))

    def at(self, places: Places) -> Logits:
        """The answers at places that are in the store; nothing is checked, for that would wait for the device."""
        if self._last is None or self._last[0] is not places:
            rows = torch.add(places.indices, places.slots, alpha=self.manifest.shape[1])
            self._last = places, self._decoded(self._rows.index_select(0, rows))
        return self._last[1]

    def _decoded(self, rows: UInt8[Tensor, "B R"]) -> Logits:
        """`RowFormat.decode`, in the same order of operations."""
        if isinstance(self._format, Floats):
            return rows.view(torch.float16 if self._format.dtype.base.itemsize == 2 else torch.float32).float()
        scale = rows[:, :8].contiguous().view(torch.float32)
        return scale[:, :1] + scale[:, 1:] * rows[:, 8:].float()


def is_decoded_on_device(stored: StoredTeacher) -> bool:
    """Whether a device can decode the rows of a store: all but those that keep the largest logits only."""
    return isinstance(stored.manifest.row_format, Floats | ScaledBytes)


def row_bytes(stored: StoredTeacher) -> int:
    """Device memory that the rows of a store take."""
    return stored.manifest.num_rows * stored.manifest.row_format.row_bytes


def _copied(rows: np.ndarray, device: torch.device) -> UInt8[Tensor, "N R"]:
    """Piece by piece: a store may be larger than what is free in the host's memory."""
    copy = torch.empty(rows.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        piece = np.array(rows[start : start + ROWS_AT_ONCE])  # torch warns of memory that it may not write to
        copy[start : start + len(piece)] = torch.from_numpy(piece).to(device)
    return copy
