"""The folder that is shipped: the champion's file and all one needs to use, trust and check it.

model.onnx            the exported file, byte for byte
labels.json           class names in the order of the logits
model_card.md         what it is, what it is for, what was measured, what it was made from
predict.py            how to use it, with ONNX Runtime and numpy alone
golden/               a few images, uint8 (N, H, W, 3), what the file answers to them, and how far another machine may
                      be off: `python -m compress.verify` compares
SHA256SUMS            of all of these; `sha256sum -c SHA256SUMS` checks them
manifest.json         size and SHA-256 of every file: `python -m compress.verify` and the server notice any change
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from compress.deploy_manifest import MANIFEST, write_manifest
from compress.errors import ArtifactError
from compress.files import write_json
from compress.fingerprint import file_sha256
from compress.model_card import DeployFacts, model_card
from compress.runtime import load_predictor
from compress.types import ImageArray
from compress.verify import GOLDEN_FACTS, GOLDEN_IMAGES, GOLDEN_LOGITS, LABELS, MODEL, write_golden

CARD, SCRIPT, SUMS = "model_card.md", "predict.py", "SHA256SUMS"
FILES = (MODEL, LABELS, CARD, SCRIPT, GOLDEN_IMAGES, GOLDEN_LOGITS, GOLDEN_FACTS)
TOP_LEVEL = {*(name.partition("/")[0] for name in FILES), SUMS, MANIFEST}

PREDICT = '''\
"""Classify images: python predict.py [images.npy], uint8 RGB pixels of shape (N, {height}, {width}, 3)."""
import json, pathlib, sys
import numpy as np, onnxruntime

folder = pathlib.Path(__file__).resolve().parent
images = np.load(sys.argv[1] if len(sys.argv) > 1 else folder / "golden" / "images.npy")
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {{"image": images}})[0]
scores = np.exp(logits - logits.max(axis=1, keepdims=True))
for row in scores / scores.sum(axis=1, keepdims=True):
    print(json.loads((folder / "labels.json").read_text("utf-8"))[row.argmax()], f"{{row.max():.3f}}")
'''


def write_deploy_folder(folder: Path, *, onnx_path: Path, facts: DeployFacts, example_images: ImageArray) -> None:
    """Write the deploy folder, replacing an earlier one: nothing appears under its name before all of it is there.

    Raises:
        ArtifactError: the exported file cannot be used, the folder cannot be written, or holds other files.
        ValueError: there are no example images, or of another size than the file takes.
    """
    if len(example_images) == 0:
        raise ValueError("a deploy folder needs at least one example image")
    _refuse_foreign_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            # Folders of their own: the outer one is private to this process and is removed whatever happens.
            written, replaced = Path(scratch) / "new", Path(scratch) / "old"
            written.mkdir()
            _write(written, onnx_path, facts=facts, example_images=example_images)
            _swap(written, folder, replaced=replaced)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror or error}; choose a writable folder") from error


def _refuse_foreign_folder(folder: Path) -> None:
    """A folder is replaced as a whole: never one with anything else in it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; choose another folder")
    foreign = sorted({entry.name for entry in folder.iterdir()} - TOP_LEVEL)
    if foreign:
        raise ArtifactError(f"{folder} holds other files ({', '.join(foreign)}); move them or choose another folder")


def _write(folder: Path, onnx_path: Path, *, facts: DeployFacts, example_images: ImageArray) -> None:
    predictor = load_predictor(onnx_path)
    height, width = predictor.image_size
    shutil.copyfile(onnx_path, folder / MODEL)
    if file_sha256(folder / MODEL) != predictor.sha256:
        raise ArtifactError(f"{onnx_path} changed while it was copied; run this again when nothing writes to it")
    write_json(folder / LABELS, list(predictor.classes))
    write_golden(folder, example_images, predictor(example_images))
    (folder / SCRIPT).write_text(PREDICT.format(height=height, width=width), encoding="utf-8")
    card = model_card(
        facts,
        classes=predictor.classes,
        image_size=predictor.image_size,
        size_bytes=predictor.size_bytes,
        sha256=predictor.sha256,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    sums = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in sorted(FILES))
    (folder / SUMS).write_text(sums, encoding="utf-8")
    write_manifest(folder)


def _swap(written: Path, folder: Path, *, replaced: Path) -> None:
    """Put a finished folder in its place; the earlier one comes back if that fails."""
    if not folder.exists():
        written.rename(folder)
        return
    folder.rename(replaced)
    try:
        written.rename(folder)
    except BaseException:
        replaced.rename(folder)
        raise
