"""Small students in every exported form, with inputs and golden answers, in a folder that any client can read.

deploy/                    a deploy folder of the float32 form, with its golden images and logits
forms/<form>.onnx          the forms
forms.json                 per form: file, input (a name in inputs.json)
inputs.json                per input: file, dtype (uint8 or float32), shape; raw little-endian numbers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from compress.data.preprocessing import Preprocessing, preprocess, resize_and_crop
from compress.deploy import write_deploy_folder
from compress.export import ExportSettings, export_onnx
from compress.export.any_size import write_any_size_entry
from compress.export.float_forms import as_float_entry, write_float_entry
from compress.model_card import DeployFacts
from compress.models import Cifar, ModelSource, Network, Statistics, Timm, build_network, count_flops, count_parameters
from compress.quantize import Float16, Int8Dynamic, Int8Static, Quantizer, WeightOnly
from compress.runtime import load_predictor

SIZE = 32
CLASSES = tuple("0123456789")
NUM_IMAGES, NUM_TRAIN = 32, 1600
PREPROCESSING = resize_and_crop(SIZE, crop_fraction=0.8, interpolation="bicubic", alpha_background="white")
STATISTICS = Statistics(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
FLOAT32, FLOAT_ENTRY, ANY_SIZE = "float32", "float32_nchw", "float32_any_size"

STUDENTS: dict[str, ModelSource] = {
    "convolutions": Cifar(name="resnet8"),
    "squeeze_excite": Timm(name="mobilenetv3_small_050"),
    "transformer": Timm(
        name="vit_tiny_patch16_224", arguments={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    ),
}
QUANTIZERS: dict[str, Quantizer] = {
    "float16": Float16(),
    "int8_static": Int8Static(),
    "int8_dynamic": Int8Dynamic(),
    "weight_only_int8": WeightOnly(),
    "weight_only_float16": WeightOnly(storage="float16"),
}


class Input(NamedTuple):
    """What clients are given."""

    name: str
    values: np.ndarray


def write_student(folder: Path, student: str, *, num_epochs: int = 10) -> None:
    """Build, export and convert one student, and write what its clients need."""
    images, labels = digits(NUM_IMAGES, SIZE, SIZE, first=NUM_TRAIN)
    pictures, _ = digits(NUM_IMAGES, 61, 47, first=NUM_TRAIN)
    forms = folder / "forms"
    forms.mkdir(parents=True)
    network = trained_network(STUDENTS[student], num_epochs)
    source = forms / f"{FLOAT32}.onnx"
    metadata = {"classes": list(CLASSES), "name": student, "preprocessing": PREPROCESSING.model_dump(mode="json")}
    export_onnx(network, source, image_size=(SIZE, SIZE), settings=ExportSettings(), metadata=metadata)
    write_float_entry(source, forms / f"{FLOAT_ENTRY}.onnx")
    write_any_size_entry(source, forms / f"{ANY_SIZE}.onnx")
    for name, quantizer in QUANTIZERS.items():
        quantizer(source, forms / f"{name}.onnx", calibration=iter([digits(256, SIZE, SIZE)[0]]))
    write_any_size_entry(forms / "int8_static.onnx", forms / "int8_static_any_size.onnx")
    accuracy = float((load_predictor(source)(images).argmax(axis=1) == labels).mean())
    write_deploy_folder(
        folder / "deploy", onnx_path=source, facts=_facts(student, network, accuracy), example_images=images
    )
    np.save(folder / "golden_any_size.npy", load_predictor(source)(np.stack([_prepared(one) for one in pictures])))
    inputs = (Input("image", images), Input("image_float", as_float_entry(images)), Input("picture", pictures))
    _write_exchange(folder, inputs)


def digits(count: int, height: int, width: int, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits in colours, uint8 (N H W 3), and what they are."""
    from sklearn.datasets import load_digits

    data = load_digits()
    random = np.random.default_rng(first)
    found: list[np.ndarray] = []
    for grey in data.images[first : first + count]:
        colour = random.integers(100, 256, 3)
        small = Image.fromarray((grey[..., None] / 16 * colour).astype(np.uint8))
        found.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
    return np.stack(found), data.target[first : first + count].astype(np.int64)


def trained_network(source: ModelSource, num_epochs: int) -> Network:
    """Trained on 1,600 digits, which is enough to have an opinion: 8-bit forms of random weights are noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(source, num_classes=len(CLASSES), image_size=(SIZE, SIZE), statistics=STATISTICS)
        network.train()
        pixels, labels = digits(NUM_TRAIN, SIZE, SIZE)
        images, answers = torch.from_numpy(as_float_entry(pixels)), torch.from_numpy(labels)
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=num_epochs * NUM_TRAIN // 64)
        for _ in range(num_epochs):
            for rows in torch.randperm(NUM_TRAIN).split(64):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(images[rows]), answers[rows]).backward()
                optimiser.step()
                schedule.step()
    return network.eval()


def _prepared(picture: np.ndarray) -> np.ndarray:
    return preprocess(Image.fromarray(picture), Preprocessing.model_validate(PREPROCESSING.model_dump()))


def _facts(student: str, network: Network, accuracy: float) -> DeployFacts:
    return DeployFacts(
        name=student,
        reason="it is the one that clients are tried with",
        architecture={"name": student},
        method="cross_entropy",
        num_parameters=count_parameters(network),
        flops=count_flops(network, (SIZE, SIZE)),
        accuracy_validation=accuracy,
        accuracy_test=accuracy,
        num_images_test=NUM_IMAGES,
        latency_ms=1.0,
        machine="not measured",
        data="scikit-learn's digits in random colours",
        preprocessing=PREPROCESSING.model_dump(mode="json"),
    )


def _write_exchange(folder: Path, inputs: tuple[Input, ...]) -> None:
    for name, values in inputs:
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(values).tobytes())
    described = {
        name: {"file": f"{name}.bin", "dtype": str(values.dtype), "shape": list(values.shape)}
        for name, values in inputs
    }
    (folder / "inputs.json").write_text(json.dumps(described))
    names = sorted(path.stem for path in (folder / "forms").glob("*.onnx"))
    forms = {name: {"file": f"forms/{name}.onnx", "input": _input_of(name)} for name in names}
    (folder / "forms.json").write_text(json.dumps(forms))


def _input_of(form: str) -> str:
    if form.endswith("any_size"):
        return "picture"
    return "image_float" if form == FLOAT_ENTRY else "image"
