"""The folder that is shipped: one exported file and all one needs to use, trust and check it.

model.onnx            the exported file, byte for byte
model.float.onnx      the same network in float32 with float32 images (N, 3, H, W) in [0, 1] as input, for converters
                      and runtimes that know no uint8 input or no 8-bit arithmetic; where it can be made
labels.json           class names in the order of the logits
model_card.md         what it is, what it is for, what was measured, what it was made from
predict.py            how to use it, with ONNX Runtime and numpy alone
golden/               a few images, uint8 (N, H, W, 3), what the file answers to them, and how far another machine may
                      be off: `python -m compress.verify` compares; what the float form answers, to check conversions
sbom.cdx.json         bill of materials: the files by their hashes, data and teacher, packages that run it
triton/               a Triton model repository with a second copy of model.onnx; only on request
SHA256SUMS            of all of these; `sha256sum -c SHA256SUMS` checks them
manifest.json         size and SHA-256 of every file: `python -m compress.verify` and the server notice any change
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress.bill_of_materials import bill_of_materials
from compress.deploy_manifest import MANIFEST, write_manifest
from compress.errors import ArtifactError, ParityError
from compress.files import write_json
from compress.fingerprint import file_sha256
from compress.model_card import DeployFacts, model_card
from compress.runtime import OnnxPredictor, load_predictor
from compress.settings import PositiveFloat, Settings
from compress.triton import write_repository
from compress.types import ImageArray
from compress.verify import DEFAULT_TOLERANCE, LABELS, MODEL, answers_depend_on_batch, write_golden

FLOAT_MODEL, CARD, SCRIPT, BILL, SUMS = "model.float.onnx", "model_card.md", "predict.py", "sbom.cdx.json", "SHA256SUMS"
FLOAT_LOGITS = "golden/float_logits.npy"
TRITON = "triton"
TOP_LEVEL = {MODEL, FLOAT_MODEL, LABELS, CARD, SCRIPT, "golden", BILL, TRITON, SUMS, MANIFEST}
FLOAT_TOLERANCE = 1e-5
"""Of the largest logit, between a float32 file and its form with a float entry: behind the entry they are the same."""
GOLDEN_TOLERANCE = {False: DEFAULT_TOLERANCE, True: 0.02}
"""By whether the file is quantised: in 8 bits, another processor or runtime rounds some values to the next step."""

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


class DeployOptions(Settings):
    """What else goes into the folder."""

    float_source: Path | None = None
    """Float32 file of the same network, which model.float.onnx is made of; see `find_float_source`."""
    tolerance: PositiveFloat | None = None
    """How far golden answers may be off elsewhere, as a fraction of the largest logit; by default 1e-4, and 0.02 for a
    quantised file."""
    triton: bool = False
    """Whether a Triton model repository is added, with its own copy of the model."""


def find_float_source(onnx_path: Path) -> Path | None:
    """The float32 file that an exported file was made of: itself, or its neighbour with the hash in its metadata.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    match load_predictor(onnx_path).metadata.get("quantization"):
        case {"source_sha256": str(sha256)}:
            neighbours = sorted(onnx_path.parent.glob("*.onnx"))
            return next((path for path in neighbours if file_sha256(path) == sha256), None)
        case _:
            return onnx_path


def write_deploy_folder(
    folder: Path,
    *,
    onnx_path: Path,
    facts: DeployFacts,
    example_images: ImageArray,
    options: DeployOptions | None = None,
) -> None:
    """Write the deploy folder, replacing an earlier one: nothing appears under its name before all of it is there.

    Raises:
        ArtifactError: the exported file cannot be used, the load test is of another file, the folder cannot be
            written, or holds other files.
        ModelError: the float form cannot be made of its source.
        ParityError: the float form answers something else than its source.
        ValueError: there are no example images, or of another size than the file takes.
    """
    if len(example_images) == 0:
        raise ValueError("a deploy folder needs at least one example image")
    _refuse_foreign_folder(folder)
    try:
        with _scratch_beside(folder) as scratch:
            written, replaced = scratch / "new", scratch / "old"
            written.mkdir()
            _write(written, onnx_path, facts=facts, example_images=example_images, options=options or DeployOptions())
            _swap(written, folder, replaced=replaced)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error.strerror or error}; choose a writable folder") from error


@contextmanager
def _scratch_beside(folder: Path) -> Generator[Path]:
    """A folder on the same disk that goes whatever happens; always the same name, to clear up after a killed writer."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_foreign_folder(folder: Path) -> None:
    """A folder is replaced as a whole: never one with anything else in it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; choose another folder")
    foreign = sorted({entry.name for entry in folder.iterdir()} - TOP_LEVEL)
    if foreign:
        raise ArtifactError(f"{folder} holds other files ({', '.join(foreign)}); move them or choose another folder")


def _write(
    folder: Path, onnx_path: Path, *, facts: DeployFacts, example_images: ImageArray, options: DeployOptions
) -> None:
    predictor = load_predictor(onnx_path)
    _require_same_model(facts, predictor)
    height, width = predictor.image_size
    shutil.copyfile(onnx_path, folder / MODEL)
    if file_sha256(folder / MODEL) != predictor.sha256:
        raise ArtifactError(f"{onnx_path} changed while it was copied; run this again when nothing writes to it")
    write_json(folder / LABELS, list(predictor.classes))
    tolerance = options.tolerance or GOLDEN_TOLERANCE["quantization" in predictor.metadata]
    write_golden(folder, example_images, predictor(example_images), tolerance=tolerance)
    (folder / SCRIPT).write_text(PREDICT.format(height=height, width=width), encoding="utf-8")
    if options.float_source is not None:
        _write_float_form(folder, options.float_source, example_images)
    if options.triton:
        _write_triton(folder, predictor, facts.name, example_images)
    facts = _with_license(facts, predictor)
    card = model_card(
        facts,
        classes=predictor.classes,
        image_size=predictor.image_size,
        size_bytes=predictor.size_bytes,
        sha256=predictor.sha256,
    )
    (folder / CARD).write_text(card, encoding="utf-8")
    write_json(
        folder / BILL, bill_of_materials(facts, _hashes(folder), model=MODEL, num_classes=len(predictor.classes))
    )
    sums = "".join(f"{sha256}  {name}\n" for name, sha256 in _hashes(folder).items())
    (folder / SUMS).write_text(sums, encoding="utf-8")
    write_manifest(folder)


def _require_same_model(facts: DeployFacts, predictor: OnnxPredictor) -> None:
    """Nobody's figures but its own."""
    if facts.serving is not None and facts.serving.model_sha256 != predictor.sha256:
        raise ArtifactError(
            f"the load test was made with another model ({facts.serving.model_sha256[:12]}), this one is "
            f"{predictor.sha256[:12]}; make one with a folder that holds this one"
        )


def _with_license(facts: DeployFacts, predictor: OnnxPredictor) -> DeployFacts:
    """The licence is the one in the file, which everybody who meets the file alone reads."""
    match predictor.metadata.get("license"):
        case str(license) if license:
            return facts.model_copy(update={"license": license})
        case _:
            return facts


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file so far, by its name relative to the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _write_float_form(folder: Path, source: Path, images: ImageArray) -> None:
    """The form with a float entry, proved on the golden images, and its answers to them."""
    # Here, because the exporter beside it needs torch, and nothing else in this module does.
    from compress.export.float_forms import as_float_entry, write_float_entry

    write_float_entry(source, folder / FLOAT_MODEL)
    expected = load_predictor(source)(images)
    session = ort.InferenceSession(folder / FLOAT_MODEL, providers=["CPUExecutionProvider"])
    given = np.asarray(session.run(["logits"], {"image": as_float_entry(images)})[0], dtype=np.float32)
    error = float(np.abs(given - expected).max()) / max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    if not error <= FLOAT_TOLERANCE:
        raise ParityError(f"{FLOAT_MODEL} is off by {error:.2g} of the largest logit of {source}; export that again")
    np.save(folder / FLOAT_LOGITS, given)


def _write_triton(folder: Path, predictor: OnnxPredictor, name: str, images: ImageArray) -> None:
    write_repository(
        folder / TRITON,
        name,
        folder / MODEL,
        classes=predictor.classes,
        # Requests that Triton joins must not change each other's answers.
        batching=not answers_depend_on_batch(predictor, images),
    )


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
