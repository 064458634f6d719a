"""Whether a deploy folder is the one that was written, and answers here as it did there.

Every file is held against manifest.json, the model's metadata against its labels and its interface, and its answers to
the golden images against the logits it gave when it was shipped: a runtime or processor that computes something else
(8-bit arithmetic saturates on some) is found out before anybody relies on it. Runs wherever onnxruntime and numpy are
installed: `python -m compress.verify deploy/`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from compress.deploy_manifest import CURE, read_verified
from compress.errors import ArtifactError, CompressError
from compress.files import write_json
from compress.onnx_session import REFUSALS, class_names, interface, open_session, read_metadata

MODEL, LABELS = "model.onnx", "labels.json"
GOLDEN_IMAGES, GOLDEN_LOGITS, GOLDEN_FACTS = "golden/images.npy", "golden/logits.npy", "golden/golden.json"
REQUIRED = (MODEL, LABELS, GOLDEN_IMAGES, GOLDEN_LOGITS, GOLDEN_FACTS)
DEFAULT_TOLERANCE = 1e-4
"""Of the largest golden logit. Other processors and versions of ONNX Runtime differ by about 1e-6 in float32."""

Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class VerifiedDeploy:
    """A deploy folder that passed; the session runs the bytes that were checked."""

    folder: Path
    metadata: dict[str, Any]
    """What the exporter wrote into the model."""
    classes: tuple[str, ...]
    """Names in the order of the logits."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    sha256: str
    """Of model.onnx."""
    num_golden: int
    """Golden images that were answered."""
    relative_error: float
    """Largest difference to a golden logit as a fraction of the largest."""
    answers_depend_on_batch: bool
    """Dynamic quantisation scales by all images of a batch, so that one image's answer changes with its neighbours."""
    session: ort.InferenceSession = field(repr=False)


def write_golden(folder: Path, images: Images, logits: Logits, *, tolerance: float = DEFAULT_TOLERANCE) -> None:
    """Add to a deploy folder a few images and what its model answered to them; `write_manifest` comes after.

    `tolerance` is the largest difference allowed elsewhere, as a fraction of the largest logit: 8-bit files need more
    than the default.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"golden images must be uint8 (N, H, W, 3) with N > 0, got {images.dtype} {images.shape}")
    if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != len(images) or not np.isfinite(logits).all():
        raise ValueError(f"golden logits must be finite float32 (N, C), got {logits.dtype} {logits.shape}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    (folder / GOLDEN_IMAGES).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / GOLDEN_IMAGES, images)
    np.save(folder / GOLDEN_LOGITS, logits)
    write_json(folder / GOLDEN_FACTS, {"tolerance": tolerance})


def verify_deploy(folder: Path, *, threads: int = 1, manifest_sha256: str | None = None) -> VerifiedDeploy:
    """Check files, metadata and golden answers; `threads` compute inside one call of the session.

    Raises:
        ArtifactError: anything is not as it was written, or the model answers differently here.
    """
    files = read_verified(folder, keep=REQUIRED, manifest_sha256=manifest_sha256)
    path = folder / MODEL
    session = open_session(path, files[MODEL], threads=threads, provider="CPUExecutionProvider")
    height, width, num_logits = interface(path, session)
    metadata = read_metadata(session)
    classes = class_names(path, metadata, num_logits)
    if _json(folder / LABELS, files[LABELS]) != list(classes):
        raise ArtifactError(f"{folder / LABELS} has other class names than {path}; {CURE}")
    _check_preprocessing(path, metadata, image_size=(height, width))
    golden = _read_golden(folder, files)
    relative_error = _golden_error(path, session, golden)
    return VerifiedDeploy(
        folder=folder,
        metadata=metadata,
        classes=classes,
        image_size=(height, width),
        sha256=hashlib.sha256(files[MODEL]).hexdigest(),
        num_golden=len(golden.images),
        relative_error=relative_error,
        answers_depend_on_batch=answers_depend_on_batch(partial(_answer, session), golden.images),
        session=session,
    )


class _Golden(NamedTuple):
    images: Images
    logits: Logits
    tolerance: float


def _check_preprocessing(path: Path, metadata: dict[str, Any], *, image_size: tuple[int, int]) -> None:
    match metadata.get("preprocessing"):
        case {"height": height, "width": width} if (height, width) == image_size:
            return
        case other:
            raise ArtifactError(
                f"{path} takes images of {image_size[0]} x {image_size[1]} px, and its metadata tells how to make "
                f"others (preprocessing: {other!r}); {CURE}"
            )


def _read_golden(folder: Path, files: dict[str, bytes]) -> _Golden:
    facts = _json(folder / GOLDEN_FACTS, files[GOLDEN_FACTS])
    match facts:
        case {"tolerance": float(tolerance)} if 0 < tolerance < 1:
            pass
        case _:
            raise ArtifactError(f"{folder / GOLDEN_FACTS} has no tolerance between 0 and 1; {CURE}")
    images = _array(folder / GOLDEN_IMAGES, files[GOLDEN_IMAGES])
    logits = _array(folder / GOLDEN_LOGITS, files[GOLDEN_LOGITS])
    if images.dtype != np.uint8 or logits.dtype != np.float32 or not 0 < len(images) == len(logits):
        raise ArtifactError(f"{folder / GOLDEN_IMAGES} and {GOLDEN_LOGITS} are no images and their answers; {CURE}")
    return _Golden(images, logits, tolerance)


def _golden_error(path: Path, session: ort.InferenceSession, golden: _Golden) -> float:
    """Largest difference to the golden logits as a fraction of the largest one."""
    try:
        logits = _answer(session, golden.images)
    except REFUSALS as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} does not take the golden images ({reason}); {CURE}") from error
    if logits.shape != golden.logits.shape:
        raise ArtifactError(f"{path} answers with {logits.shape}, the golden logits are {golden.logits.shape}; {CURE}")
    if not np.isfinite(logits).all():
        raise ArtifactError(f"{path} answers the golden images with NaN or infinity on this machine; use another form")
    error = _relative_error(logits, golden.logits)
    if error > golden.tolerance:
        raise ArtifactError(
            f"{path} answers differently on this machine: a golden logit is off by {error:.2g} of the largest, allowed "
            f"is {golden.tolerance:.2g}; use another version of ONNX Runtime, or a form made for this processor"
        )
    return error


def answers_depend_on_batch(answer: Callable[[Images], Logits], images: Images) -> bool:
    """Whether answers differ between all images at once and one by one.

    By more than rounding in float32, whatever the golden tolerance: that of 8-bit files is wide enough to hide it.
    """
    together = answer(images)
    alone = np.concatenate([answer(image[None]) for image in images])
    return _relative_error(alone, together) > DEFAULT_TOLERANCE


def _answer(session: ort.InferenceSession, images: Images) -> Logits:
    (logits,) = session.run(["logits"], {"image": images})
    return np.asarray(logits, dtype=np.float32)


def _relative_error(given: Logits, expected: Logits) -> float:
    difference = float(np.abs(given.astype(np.float64) - expected).max())
    return difference / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: no JSON; {CURE}") from error


def _array(path: Path, content: bytes) -> npt.NDArray[Any]:
    try:
        value = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: no array ({error}); {CURE}") from error
    if not isinstance(value, np.ndarray):
        raise ArtifactError(f"{path} is damaged: several arrays; {CURE}")
    return value


def summary(verified: VerifiedDeploy) -> str:
    """One line for people."""
    return (
        f"{verified.folder} is as it was written: model {verified.sha256[:12]}, {len(verified.classes)} classes, "
        f"{verified.num_golden} golden images within {verified.relative_error:.1e} of the largest logit"
    )


def main() -> int:
    """The command line; 0 when the folder passed."""
    parser = argparse.ArgumentParser(prog="python -m compress.verify", description="Check a deploy folder.")
    parser.add_argument("folder", type=Path, help="The folder that the select stage wrote.")
    parser.add_argument("--manifest-sha256", help="SHA-256 that manifest.json must have.")
    arguments = parser.parse_args()
    try:
        verified = verify_deploy(arguments.folder, manifest_sha256=arguments.manifest_sha256)
    except CompressError as error:
        print(f"compress: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(summary(verified))
    return 0


if __name__ == "__main__":
    sys.exit(main())
