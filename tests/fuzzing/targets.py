"""What is fuzzed: one function for each reader of outside bytes.

A target feeds its reader and lets through only the errors that the reader documents; anything else that comes out of it
is a defect. What the reader accepts is checked too, where its docstring promises something.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from compress.artifact import load_card
from compress.data.class_folders import sort_into_classes
from compress.data.decoding import UnreadableImageError, decode
from compress.data.file_tree import FileTree, _tree, open_file_tree
from compress.data.manifest import MANIFEST_FILE, Manifest
from compress.data.prepared import load_prepared
from compress.data.preprocessing import resize_and_crop
from compress.deploy_manifest import read_verified
from compress.errors import ArtifactError, DataError, ModelError, ParamsError
from compress.logit_store import LOGITS, TeacherLogitsManifest, check_rows, read_manifest, write_manifest
from compress.models.checkpoint import CARD_FILE, read_card_facts, read_checkpoint
from compress.models.weights import Destination, load_weights_
from compress.onnx_session import open_session
from compress.runtime import load_predictor
from compress.serve.bodies import image_part
from compress.serve.errors import RequestError
from compress.serve.image_header import read_header
from compress.serve.images import ImageReader
from compress.serve.inference_protocol import format_answer, parse_request
from compress.serve.model import ServedModel
from compress.serve.settings import Limits
from pipelines.params import load_params
from pipelines.schema import AllParams
from tests.compress.onnx_files import CLASSES, SIZE, colour_model

MAX_PIXELS = 300_000
"""Small, so that one execution stays fast; the bound is the same code whatever its value."""
SIDE = 24
PREPROCESSING = resize_and_crop(SIDE, crop_fraction=0.75, interpolation="bicubic", alpha_background="white")
BOUNDARY = b"edge"

Target = Callable[[bytes], None]


def picture_file(data: bytes) -> None:
    """A picture of a data set, in any format that Pillow decodes."""
    with contextlib.suppress(UnreadableImageError):
        picture = decode(data, max_pixels=MAX_PIXELS, alpha_background="white")
        assert picture.mode == "RGB"
        assert 0 < picture.width * picture.height <= MAX_PIXELS


def picture_request(data: bytes) -> None:
    """A picture that somebody sends to the server."""
    reader = ImageReader(PREPROCESSING, Limits(max_pixels=MAX_PIXELS, max_side=4096))
    with contextlib.suppress(RequestError):
        assert reader(data).shape == (SIDE, SIDE, 3)


def picture_header(data: bytes) -> None:
    """The first bytes of such a picture."""
    with contextlib.suppress(UnreadableImageError):
        header = read_header(data)
        assert header.width >= 0
        assert header.height >= 0


def torch_checkpoint(data: bytes) -> None:
    """A .pth file of somebody else."""
    _checkpoint(_file("weights.pth", data))


def safetensors_checkpoint(data: bytes) -> None:
    """A .safetensors file of somebody else."""
    _checkpoint(_file("weights.safetensors", data))


def model_card(data: bytes) -> None:
    """The card of a saved network."""
    folder = _file(CARD_FILE, data).parent
    with contextlib.suppress(ArtifactError):
        card = load_card(folder)
        assert type(card).model_validate_json(card.model_dump_json()) == card
    with contextlib.suppress(ModelError):
        read_card_facts(folder)


def onnx_file(data: bytes) -> None:
    """An ONNX file of somebody else."""
    with contextlib.suppress(ArtifactError):
        predictor = load_predictor(_file("model.onnx", data))
        assert len(predictor.classes) > 0


def inference_request(data: bytes) -> None:
    """A request of the Open Inference Protocol; the first two bytes are the length of its JSON, 65535 for none."""
    length = int.from_bytes(data[:2], "big")
    model = _served_model()
    with contextlib.suppress(RequestError):
        inference = parse_request(
            data[2:], header_length=None if length == 0xFFFF else length, model=model, max_images=8
        )
        assert inference.images.dtype == np.uint8
        assert 1 <= len(inference.images) <= 8
        assert inference.images.shape[1:] == model.image_shape
        format_answer(inference, np.zeros((len(inference.images), len(CLASSES)), dtype=np.float32), model)


def form(data: bytes) -> None:
    """A multipart form with a picture."""
    with contextlib.suppress(RequestError):
        assert len(image_part(data, f"multipart/form-data; boundary={BOUNDARY.decode()}")) <= len(data)


def zip_archive(data: bytes) -> None:
    """A zip archive of class folders."""
    with contextlib.suppress(DataError), open_file_tree(_file("images.zip", data)) as tree:
        for name in tree.files[:8]:
            with contextlib.suppress(UnreadableImageError):
                tree.read(name)
        _sort(tree)


def folder_names(data: bytes) -> None:
    """Names of files and folders of a data set, one a line; what ends in a slash is an empty folder."""
    names = set(data.decode("utf-8", "replace").split("\n"))
    files = [name for name in names if not name.endswith("/")]
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    folders = {name.rstrip("/") for name in names if name.endswith("/")} | parents
    with contextlib.suppress(DataError):
        _sort(_tree(files, folders, read=lambda name: b""))


def params_file(data: bytes) -> None:
    """params.yaml."""
    with contextlib.suppress(ParamsError):
        load_params(AllParams, _file("params.yaml", data))


def teacher_logits_manifest(data: bytes) -> None:
    """manifest.json of the stored teacher logits, and the rows it describes."""
    folder = _file("manifest.json", data).parent
    rows = folder / LOGITS
    rows.write_bytes(b"\x93NUMPY" + bytes(250))
    with contextlib.suppress(ArtifactError):
        check_rows(rows, read_manifest(folder))
    with contextlib.suppress(ValidationError, ArtifactError):  # past the hash, as somebody who fakes it gets
        write_manifest(folder, TeacherLogitsManifest.model_validate_json(data))
        check_rows(rows, read_manifest(folder))


def prepared_manifest(data: bytes) -> None:
    """manifest.json of the prepared data."""
    path = _file(MANIFEST_FILE, data)
    with contextlib.suppress(ArtifactError):
        load_prepared(path.parent)
    with contextlib.suppress(ValidationError, ArtifactError):
        manifest = Manifest.model_validate_json(data)
        manifest.model_copy(update={"fingerprint": manifest.compute_fingerprint()}).write(path.parent)
        load_prepared(path.parent)


def deploy_manifest(data: bytes) -> None:
    """manifest.json of a deploy folder."""
    with contextlib.suppress(ArtifactError):
        read_verified(_file("manifest.json", data).parent, keep=())


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        picture_file,
        picture_request,
        picture_header,
        torch_checkpoint,
        safetensors_checkpoint,
        model_card,
        onnx_file,
        inference_request,
        form,
        zip_archive,
        folder_names,
        params_file,
        teacher_logits_manifest,
        prepared_manifest,
        deploy_manifest,
    )
}


def _checkpoint(path: Path) -> None:
    network = nn.Linear(4, 3)
    with contextlib.suppress(ModelError):
        found = read_checkpoint(path, network_bytes=60)
        destination = Destination(network, "a line", 3)
        load_weights_(destination, found.tensors, origin=str(path), replace_head=False)
        assert torch.isfinite(network.weight).all()


def _sort(tree: FileTree) -> None:
    found = sort_into_classes(tree)
    assert len(found.classes) > 1
    assert all(0 <= image.label < len(found.classes) for image in found.images)


@functools.cache
def _folder() -> Path:
    """A folder for one process, in memory where the system has such."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="compress-fuzz-", dir=memory if memory.is_dir() else None))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(name: str, data: bytes) -> Path:
    """A file in a folder of its own."""
    path = _folder() / name.replace(".", "_") / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


@functools.cache
def _served_model() -> ServedModel:
    height, width = SIZE
    content = colour_model().SerializeToString()
    return ServedModel(
        name="colours",
        version="0",
        sha256="0" * 64,
        classes=CLASSES,
        preprocessing=PREPROCESSING.model_copy(update={"height": height, "width": width}),
        max_batch=8,
        session=open_session(Path("colours.onnx"), content, threads=1, provider="CPUExecutionProvider"),
    )
