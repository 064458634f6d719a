"""The teacher's answers: asked while training, or written once for every view and shared by all students.

`teacher_logits_writer` writes a store. Here it is opened and read, on a machine that need not have the teacher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import final

import numpy as np
import torch
from pydantic import model_validator
from torch import nn

from compress.data.prepared import PreparedSplit
from compress.data.views import view_images
from compress.device import DeviceName
from compress.errors import ArtifactError, ParamsError
from compress.logit_rows import ByteRows, StoredType
from compress.logit_store import LOGITS, TeacherLogitsManifest, check_rows, read_manifest
from compress.models import Network
from compress.settings import PositiveFloat, PositiveInt, Settings
from compress.teacher_pass import PassBackend, PassPrecision, ResolvedPrecision, TeacherPass, computing_in
from compress.tensors import as_float_images
from compress.types import Answer, FloatImages, IndexArray, Logits

SETTING_OF_ONE = {"kd": "temperature", "dkd": "temperature", "nkd": "temperature", "ttm": "gamma", "wttm": "gamma"}
"""Methods that see the teacher's probabilities as they are, and the setting that has to be 1 for that."""


class TeacherLogitsSettings(Settings):
    """Whether and how the teacher's answers are stored."""

    enabled: bool = True
    """Write the answers once and share them; off: the teacher runs at every training step."""
    dtype: StoredType = "float16"
    """Stored type; float16 takes 2 bytes for a logit, float32 4, uint8 1 (in steps of 1/255 of the view's range). The
    measured error is in the manifest."""
    top_k: PositiveInt | None = None
    """Keep this many logits of each view and share the other classes' probability evenly; for methods at temperature
    1 only, because softened losses live on what is thrown away. None keeps all."""
    precision: PassPrecision = "float32"
    """Precision of the teacher, whether its answers are stored or it runs while students train: float32,
    tensorfloat32 (GPU), bfloat16 (about twice as fast), or auto: the fastest whose largest logit difference from
    float32 on 256 views is at most max_precision_error."""
    backend: PassBackend = "torch"
    """What computes the teacher's logits on a CPU: torch, onnxruntime (float32), openvino (an extra, float32 or
    bfloat16), or auto: the fastest measured here. In float32 all differ by rounding only; a teacher that a back-end
    can not take is run by torch."""
    max_precision_error: PositiveFloat = 0.1
    """With precision: auto, the largest logit difference that is accepted. 0.1 changes the ratio of two probabilities
    by a tenth at most; bfloat16 usually stays below it."""
    batch_size: PositiveInt | None = None
    """Images per forward pass of the teacher; by default 64 on a CPU and 512 on a GPU."""
    rows_per_chunk: PositiveInt = 8192
    """Views between two points from which a killed stage goes on."""
    device: DeviceName = "auto"
    threads: PositiveInt | None = None
    """CPU threads of the teacher's pass; by default all cores."""

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> TeacherLogitsSettings:
        if self.top_k is not None and self.dtype != "float16":
            raise ValueError(f"top_k keeps float16 logits: leave out top_k or dtype: {self.dtype}")
        if "max_precision_error" in self.model_fields_set and self.precision != "auto":
            raise ValueError("max_precision_error has an effect with precision: auto only; leave it out")
        if self.backend == "onnxruntime" and self.precision not in ("auto", "float32"):
            raise ValueError(f"backend: onnxruntime computes in float32, not {self.precision}; leave out one of them")
        if self.backend == "openvino" and self.precision == "tensorfloat32":
            raise ValueError("backend: openvino computes on the CPU, which has no tensorfloat32; leave out one of them")
        return self


class TeacherAnswers(ABC):
    """Logits of the teacher for a batch of views."""

    @abstractmethod
    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        """The answers for views `slots` of the train images `indices`, whose pixels are `images`; on their device."""


@final
class OnlineTeacher(TeacherAnswers):
    """Runs the network at every step. The network is frozen and put in evaluation mode, for good.

    Without a precision it computes as the surrounding code does. `logits_from` is a faster way to the same network's
    logits; features come from the network itself.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: ResolvedPrecision | None = None,
        *,
        logits_from: TeacherPass | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self._precision: ResolvedPrecision | None = precision
        self._ask = logits_from or self._ask_network
        # Students that train side by side ask about the very same tensor one after the other.
        self._last_logits: tuple[FloatImages, Logits] | None = None
        self._last_answer: tuple[FloatImages, Answer] | None = None

    @torch.no_grad()
    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        self._check()
        if self._last_logits is None or self._last_logits[0] is not images:
            self._last_logits = images, self._ask(images)
        return self._last_logits[1]

    @torch.no_grad()
    def answer(self, images: FloatImages) -> Answer:
        """Logits and features of images, for methods that compare features.

        Raises:
            ModelError: the network has no interface to its features.
        """
        self._check()
        assert isinstance(self.network, Network)
        if self._last_answer is None or self._last_answer[0] is not images:
            with self._computing(images.device):
                self._last_answer = images, self.network.answer(images)
        return self._last_answer[1]

    def _ask_network(self, images: FloatImages) -> Logits:
        with self._computing(images.device):
            return self.network(images).float()

    def _computing(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext() if self._precision is None else computing_in(self._precision, device)

    def _check(self) -> None:
        assert not self.network.training, "a teacher in training mode uses and changes batch statistics"


@final
class StoredTeacher(TeacherAnswers):
    """Reads a store's rows from a memory map. Made by `open_teacher_logits`, which checks them."""

    def __init__(self, path: Path, manifest: TeacherLogitsManifest) -> None:
        self.path = path
        self.manifest = manifest
        self._format = manifest.row_format
        shape = (manifest.num_rows, self._format.row_bytes)
        # As a plain array: indexing np.memmap itself costs several times as much.
        self._rows = np.asarray(np.memmap(path, np.uint8, mode="r", offset=len(manifest.header), shape=shape))

    @property
    def rows(self) -> ByteRows:
        """All rows as they stand in the file; read only, mapped into memory."""
        return self._rows

    def logits(self, images: FloatImages, indices: IndexArray, slots: IndexArray) -> Logits:
        # Checks both ranges, where slot * images + index would reach into another slot.
        rows = np.ravel_multi_index((slots, indices), self.manifest.shape[:2])
        logits = torch.from_numpy(self._format.decode(self._rows[rows]))
        if images.device.type == "cuda":
            logits = logits.pin_memory()
        return logits.to(images.device, non_blocking=True)

    def errors(self, logits: Logits, indices: IndexArray, slots: IndexArray) -> np.ndarray:
        """Largest difference of each view's stored logits from other ones, over the classes that are stored."""
        rows = np.ravel_multi_index((slots, indices), self.manifest.shape[:2])
        return self._format.errors(self._rows[rows], logits.cpu().numpy())


def open_teacher_logits(folder: Path, expected: TeacherLogitsManifest, *, verify_rows: bool = True) -> StoredTeacher:
    """Map a store into memory after checking that it is whole and holds the expected answers.

    `expected` is usually `read_manifest(folder).expecting(...)`. Of several processes that open one store on one
    machine, all but the first may leave out verifying the rows, once the first is done.

    Raises:
        ArtifactError: it is missing, cut off, changed, or of another teacher, data set or view schedule.
    """
    manifest = read_manifest(folder)
    for field in ("enabled", "teacher_sha256", "data_fingerprint", "views", "dtype", "top_k", "shape"):
        if getattr(manifest, field) != getattr(expected, field):
            raise ArtifactError(
                f"teacher logits in {folder} have another {field}: {getattr(manifest, field)}, "
                f"expected {getattr(expected, field)}; run the teacher_logits stage again"
            )
    if not manifest.enabled:
        raise ValueError(f"the store in {folder} is switched off; its teacher runs online")
    if verify_rows:
        check_rows(folder / LOGITS, manifest)
    return StoredTeacher(folder / LOGITS, manifest)


def verify_against_teacher(
    store: StoredTeacher, split: PreparedSplit, network: nn.Module, *, num_samples: int = 32, seed: int = 0
) -> float:
    """Ask the teacher itself about random views and compare; returns the largest difference.

    Finds what hashes can not: views or images that are no longer made as they were, answers in another order, a
    manifest that claims another teacher. The network is frozen and runs where it is, in float32.

    Raises:
        ArtifactError: an answer differs by more than rounding.
    """
    manifest, random = store.manifest, np.random.default_rng(seed)
    slots = random.integers(0, manifest.shape[0], num_samples, dtype=np.int64)
    indices = random.integers(0, manifest.shape[1], num_samples, dtype=np.int64)
    if len(split) != manifest.shape[1]:
        raise ArtifactError(_another_answer(store, f"they are about {manifest.shape[1]} images of {len(split)}"))
    views = manifest.views
    images = view_images(split, views.augmentation, indices=indices, slots=slots, seed=views.seed)
    device = next(network.parameters()).device
    fresh = OnlineTeacher(network, "float32").logits(as_float_images(images, device), indices, slots)
    if fresh.shape[1] != manifest.shape[2]:
        raise ArtifactError(_another_answer(store, f"it has {fresh.shape[1]} classes, they have {manifest.shape[2]}"))
    # The pass was measured on other samples; and another machine, batch or thread count sums in another order.
    allowed = manifest.max_abs_error + 3 * manifest.pass_error + 1e-4 * float(fresh.abs().max())
    errors = store.errors(fresh, indices, slots)
    worst = int(errors.argmax())
    if not errors[worst] <= allowed:
        what = f"view {slots[worst]} of image {indices[worst]} differs by {errors[worst]:.3g}"
        raise ArtifactError(_another_answer(store, f"{what}, {allowed:.3g} would be rounding"))
    return float(errors[worst])


def check_method_fits_store(method: Settings, manifest: TeacherLogitsManifest) -> None:
    """Refuse a method that needs logits which the store does not keep.

    Raises:
        ParamsError: the store keeps the largest logits only, and the method does not take probabilities as they are.
    """
    if manifest.top_k is None:
        return
    settings = method.model_dump()
    name = settings["name"]
    setting = SETTING_OF_ONE.get(name)
    if setting is None:
        raise ParamsError(
            f"method {name} is not known to work with the {manifest.top_k} largest logits alone; "
            f"leave out teacher_logits.top_k, or use one of {', '.join(SETTING_OF_ONE)}"
        )
    if settings[setting] != 1:
        raise ParamsError(
            f"method {name} with {setting}: {settings[setting]} learns from the small logits, and the store keeps the "
            f"{manifest.top_k} largest only; set {setting}: 1, or leave out teacher_logits.top_k"
        )


def _another_answer(store: StoredTeacher, difference: str) -> str:
    return (
        f"the logits in {store.path} are not this teacher's answers to these views: {difference}; "
        "run the teacher_logits stage again"
    )


__all__ = [
    "OnlineTeacher",
    "StoredTeacher",
    "TeacherAnswers",
    "TeacherLogitsManifest",
    "TeacherLogitsSettings",
    "check_method_fits_store",
    "open_teacher_logits",
    "read_manifest",
    "verify_against_teacher",
]
