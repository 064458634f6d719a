"""The deployed student as the server uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, UInt8

from compress.data.preprocessing import Preprocessing, preprocessing_in
from compress.errors import ArtifactError
from compress.onnx_session import CURE
from compress.serve.errors import ServeError
from compress.serve.settings import ServeSettings
from compress.verify import MODEL, VerifiedDeploy, verify_deploy

DEFAULT_MAX_BATCH = 32

ImageBatch = UInt8[np.ndarray, "B H W 3"]
LogitBatch = Float32[np.ndarray, "B C"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_VERSION_LENGTH = 12


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A verified deploy folder with everything that answering needs."""

    name: str
    version: str
    """The first digits of the model's SHA-256."""
    sha256: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    max_batch: int
    """Images of different requests in one run."""
    session: ort.InferenceSession

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: height, width, 3."""
        return (self.preprocessing.height, self.preprocessing.width, 3)

    def __call__(self, images: ImageBatch) -> LogitBatch:
        """Raw images in, logits out."""
        (logits,) = self.session.run(["logits"], {"image": images})
        return np.asarray(logits, dtype=np.float32)


def load_served_model(settings: ServeSettings) -> ServedModel:
    """Verify the deploy folder and get its model ready.

    Raises:
        ArtifactError: the folder is not the one that was written, or its model cannot be served.
        ServeError: max_batch does not fit the model.
    """
    verified = verify_deploy(settings.folder, threads=settings.threads, manifest_sha256=settings.manifest_sha256)
    return ServedModel(
        name=_name(verified),
        version=verified.sha256[:_VERSION_LENGTH],
        sha256=verified.sha256,
        classes=verified.classes,
        preprocessing=preprocessing_in(verified.metadata, verified.folder / MODEL),
        max_batch=_max_batch(settings, verified),
        session=verified.session,
    )


def _name(verified: VerifiedDeploy) -> str:
    name = verified.metadata.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArtifactError(
            f"{verified.folder / MODEL} has the name {name!r} in its metadata; it must consist of letters, digits, "
            f"'_', '.' and '-'; {CURE}"
        )
    return name


def _max_batch(settings: ServeSettings, verified: VerifiedDeploy) -> int:
    if not verified.answers_depend_on_batch:
        return settings.max_batch or DEFAULT_MAX_BATCH
    if settings.max_batch is not None and settings.max_batch > 1:
        raise ServeError(
            f"max_batch is {settings.max_batch}, and this model answers an image differently in another batch (dynamic "
            "quantisation): set max_batch to 1"
        )
    return 1
