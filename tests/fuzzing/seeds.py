"""The inputs that fuzzing starts from, valid ones mostly: python -m tests.fuzzing.seeds writes them into the corpus."""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from compress.artifact import ModelCard, load_card, save_model
from compress.data import DataSettings, ImageFolder
from compress.data.prepare import prepare
from compress.data.view_schedule import ViewSettings
from compress.deploy_manifest import write_manifest as write_deploy_manifest
from compress.logit_store import TeacherLogitsManifest
from compress.models import Cnn, Statistics, build_network
from tests.compress.data.pictures import class_files, smooth, write_files
from tests.compress.onnx_files import colour_model
from tests.fuzzing.corpus import CORPUS
from tests.fuzzing.targets import BOUNDARY

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
PICTURE_FORMATS = {
    "PNG": {},
    "JPEG": {"quality": 40},
    "WEBP": {"quality": 40},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
    "TGA": {},
    "ICO": {"sizes": [(12, 12)]},
    "PCX": {},
    "SGI": {},
    "JPEG2000": {},
    "DDS": {},
    "MPO": {},
}


def pictures() -> dict[str, bytes]:
    """One small picture in each of the usual formats, and the modes that conversion treats apart."""
    picture = smooth(1, 18, 12)
    found = {name.lower(): _saved(picture, name, **options) for name, options in PICTURE_FORMATS.items()}
    exif = Image.Exif()
    exif[0x0112] = 6
    found["turned"] = _saved(picture, "JPEG", exif=exif.tobytes(), quality=40)
    found["progressive"] = _saved(picture, "JPEG", progressive=True, quality=40)
    found["cmyk"] = _saved(picture.convert("CMYK"), "JPEG", quality=40)
    found["transparent"] = _saved(picture.convert("RGBA"), "PNG")
    found["palette"] = _saved(picture.convert("P"), "PNG", transparency=3)
    found["deep_grey"] = _saved(Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500), "PNG")
    found["lossless"] = _saved(picture, "WEBP", lossless=True)
    return found


def checkpoints() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A tiny network's weights as torch files, in the shapes that training scripts give them, and as safetensors."""
    state = nn.Linear(4, 3).state_dict()
    torch_files = {
        "plain": _torch(state),
        "old": _torch(state, _use_new_zipfile_serialization=False),
        "nested": _torch({"epoch": 3, "best_acc": np.float64(0.5), "model": OrderedDict(state)}),
        "module": _torch({"state_dict": {f"module.{name}": nn.Parameter(value) for name, value in state.items()}}),
    }
    halves = {name: value.half() for name, value in state.items()}
    return torch_files, {"plain": safetensors.torch.save(state), "half": safetensors.torch.save(halves)}


def documents(work: Path) -> dict[str, dict[str, bytes]]:
    """The JSON files that stages leave, small ones."""
    data = prepare(
        DataSettings(source=ImageFolder(path=write_files(work / "images", class_files(num_images=10)))),
        work / "prepared",
    )
    del data
    manifest = (work / "prepared" / "manifest.json").read_bytes()
    statistics = Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model = Cnn()
    network = build_network(model, num_classes=2, image_size=(8, 8), statistics=statistics)
    card = ModelCard(
        architecture=model,
        classes=("apple", "pear"),
        height=8,
        width=8,
        mean=statistics.mean,
        std=statistics.std,
        preprocessing={},
        num_parameters=1,
        flops=1,
        fingerprint="0",
    )
    save_model(work / "model", network, card)
    load_card(work / "model")
    write_files(work / "deploy", {"model.onnx": b"x", "labels.json": b"[]"})
    write_deploy_manifest(work / "deploy")
    logits = TeacherLogitsManifest(
        enabled=True, teacher_sha256="0" * 64, data_fingerprint="1" * 64, views=ViewSettings(), dtype="float16",
        shape=(1, 2, 2), chunk_sha256=("0" * 64,),
    )  # fmt: skip
    sparse = logits.model_copy(update={"dtype": "uint8", "top_k": 1, "shape": (2, 4, 3)})
    return {
        "model_card": {"cnn": (work / "model" / "card.json").read_bytes()},
        "prepared_manifest": {"arrays": manifest},
        "teacher_logits_manifest": {
            "floats": logits.model_dump_json().encode(),
            "largest": sparse.model_dump_json().encode(),
        },
        "deploy_manifest": {"two_files": (work / "deploy" / "manifest.json").read_bytes()},
    }


def requests() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Inference requests and forms."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 6, 3]}
    flat = json.dumps({"id": "a", "inputs": [{**tensor, "data": list(range(72))}]}).encode()
    nested = json.dumps({"inputs": [{**tensor, "data": np.zeros((1, 4, 6, 3), dtype=int).tolist()}]}).encode()
    binary = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": 72}}],
            "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
        }
    ).encode()
    no_header = b"\xff\xff"
    part = b'--%b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' % BOUNDARY
    raw = len(binary).to_bytes(2, "big") + binary + bytes(72)
    end = b"--%b--\r\n" % BOUNDARY
    inference = {"flat": no_header + flat, "nested": no_header + nested, "raw": raw}
    return inference, {"one": part + b"picture\r\n" + end, "two": (part + b"picture\r\n") * 2 + end}


def archives() -> dict[str, bytes]:
    """Zip archives of class folders, with and without splits, stored and compressed."""
    tiny = _saved(smooth(1, 4, 4), "GIF")
    plain = {"apple/1.gif": tiny, "pear/1.gif": tiny}
    splits = {f"set/{split}/{name}": content for split in ("train", "val") for name, content in plain.items()}
    odd = {"../up.gif": tiny, "/root.gif": tiny, "__MACOSX/apple/1.gif": tiny, "a\\b.gif": tiny, **plain}
    return {
        "plain": _zip(plain, zipfile.ZIP_DEFLATED),
        "splits": _zip(splits, zipfile.ZIP_STORED),
        "odd": _zip(odd, zipfile.ZIP_STORED),
        "lzma": _zip(plain, zipfile.ZIP_LZMA),
    }


def make_seeds(work: Path) -> dict[str, dict[str, bytes]]:
    """Contents by target and name; `work` is an empty folder."""
    torch.manual_seed(0)
    torch_files, safetensors_files = checkpoints()
    inference, forms = requests()
    images = pictures()
    served = {name: images[name] for name in ("png", "jpeg", "webp", "turned", "palette", "lossless", "deep_grey")}
    recipes = {path.stem: path.read_bytes() for path in sorted(RECIPES.rglob("*.yaml"))}
    wanted = ("digits", "image_folder", "resnet32x4_resnet8x4", "methods_on_cpu", "plumbing")
    return {
        "picture_file": images,
        "picture_request": served,
        "picture_header": served,
        "torch_checkpoint": torch_files,
        "safetensors_checkpoint": safetensors_files,
        "onnx_file": {"colours": colour_model().SerializeToString()},
        "inference_request": inference,
        "form": forms,
        "zip_archive": archives(),
        "folder_names": {
            "classes": b"a/1.png\na/2.png\nb/1.png\nc/\n",
            "splits": b"x/train/a/1.png\nx/train/b/1.png\nx/val/a/2.png\nx/val/b/2.png\n.x/y.png",
        },
        "params_file": {name: recipes[name] for name in wanted},
        **documents(work),
    }


def _saved(picture: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _torch(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _zip(files: Mapping[str, bytes], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def main() -> None:
    """Write the seeds into the corpus; inputs that fuzzing found stay."""
    import tempfile

    argparse.ArgumentParser(prog="python -m tests.fuzzing.seeds", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as work:
        for target, files in make_seeds(Path(work)).items():
            for name, content in files.items():
                (CORPUS / target).mkdir(parents=True, exist_ok=True)
                (CORPUS / target / f"seed_{name}").write_bytes(content)


if __name__ == "__main__":
    main()
