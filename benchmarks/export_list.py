"""Which networks export, and how closely the files follow them, from image files on.

    python -m benchmarks.export_list [--only REGEX] [--min-python PYTHON]

Every network gets random weights from seed 0 and batch-normalisation statistics from 64 images, and its last biases
are set so that its mean logits are zero: with random weights alone it would answer all images with one class, and
agreement would mean nothing. Images are real where ../shared/data has them (CIFAR-100 test pictures as PNG at 32 px,
ImageNet samples as JPEG at 224 px), otherwise noise. The reference opens the files with Pillow and torchvision and
runs torch, the candidate is the shipped way: our decoding and the exported file in ONNX Runtime. Batches of 1, 2, 7
and 32 are compared; --min-python is a Python with the oldest supported ONNX Runtime and numpy, which answers the same
images in the same batches. Both use one thread. Ends with exit code 1 unless all networks pass.

Written, network by network, to results/export_list.json, and as a table to results/export_list.md; networks that were
not chosen keep their rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks.export_networks import NUM_CALIBRATION, Entry, entries, image_files, random_network
from compress.data.decoding import decode
from compress.export import ExportSettings, export_onnx
from compress.export.any_size import write_any_size_entry
from compress.export.float_forms import as_float_entry, write_float_entry
from compress.export.graph import MIN_ONNXRUNTIME, unfolded_normalisations
from compress.image_files import ShippedPath, TorchvisionPath
from compress.models import count_flops
from compress.parity import BATCH_SIZES, assert_parity
from compress.runtime import OnnxPredictor, load_predictor

RESULTS = Path(__file__).parent / "results"
BUDGET_FLOPS = 1e11
"""Per network; decides how many images it sees."""
MIN_IMAGES, MAX_IMAGES = 48, 512
LEAST_AGREEMENT = 0.999
ANY_SIZE_TOLERANCE = 0.05
"""Pixels one grey level apart in a few pictures; how much they move the logits is the network's affair."""

AT_LEAST = """\
import json, sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images, expected = np.load(sys.argv[2]), np.load(sys.argv[3])
errors = [float(np.abs(session.run(["logits"], {"image": images[:n]})[0] - expected[:n]).max()) for n in (1, 2, 7, 32)]
print(json.dumps({"version": onnxruntime.__version__, "relative_error": max(errors) / float(np.abs(expected).max())}))
"""


def measure(entry: Entry, folder: Path, min_python: Path | None) -> dict[str, Any]:
    """Export one network and compare."""
    probe = image_files(entry.size, NUM_CALIBRATION)
    network = random_network(entry, probe)
    flops = count_flops(network, (entry.size, entry.size))
    count = int(min(max(BUDGET_FLOPS / flops, MIN_IMAGES), MAX_IMAGES))
    path = folder / "float32.onnx"
    began = time.perf_counter()
    metadata = {
        "classes": [str(number) for number in range(entry.num_classes)],
        "preprocessing": entry.preprocessing.model_dump(mode="json"),
    }
    export_onnx(network, path, image_size=(entry.size, entry.size), settings=ExportSettings(), metadata=metadata)
    seconds = time.perf_counter() - began
    exported = load_predictor(path)
    files = image_files(entry.size, count)
    began = time.perf_counter()
    shipped = ShippedPath(exported, entry.preprocessing)
    parity = assert_parity(TorchvisionPath(network, entry.preprocessing), shipped, files, tolerance=1e-4)
    operators = Counter(node.op_type for node in onnx.load(path).graph.node)
    return {
        "label": entry.label,
        "image_size": entry.size,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "size_bytes": exported.size_bytes,
        "export_seconds": round(seconds, 1),
        "parity_seconds": round(time.perf_counter() - began, 1),
        "num_nodes": sum(operators.values()),
        "batch_normalisations": operators["BatchNormalization"],
        "unfolded_normalisations": unfolded_normalisations(onnx.load(path).graph),
        "num_images": parity.num_images,
        "num_classes_answered": len(set(shipped(files[:64]).argmax(axis=1).tolist())),
        "relative_error": parity.relative_error,
        "absolute_error": parity.absolute_error,
        "agreement": parity.agreement,
        "agreement_outside_ties": parity.agreement_outside_ties,
        "disagreements": [each.model_dump() for each in parity.disagreements],
        "float_entry_error": _float_entry_error(exported, path, entry, files),
        "any_size_error": None if entry.size == 32 else _any_size_error(exported, path, entry, files),
        "oldest_onnxruntime": None if min_python is None else _oldest(exported, entry, files, folder, min_python),
    }


def _float_entry_error(exported: OnnxPredictor, path: Path, entry: Entry, files: list[bytes]) -> float:
    """Of the form that takes float32 images, against the one that takes bytes, on 7 images."""
    write_float_entry(path, path.with_name("entry.onnx"))
    session = ort.InferenceSession(path.with_name("entry.onnx"), providers=["CPUExecutionProvider"])
    as_floats = ShippedPath(
        lambda images: np.asarray(session.run(["logits"], {"image": as_float_entry(images)})[0]), entry.preprocessing
    )
    return _relative(as_floats(files[:7]), ShippedPath(exported, entry.preprocessing)(files[:7]))


def _any_size_error(exported: OnnxPredictor, path: Path, entry: Entry, files: list[bytes]) -> float:
    """Of the form that resizes inside, against pictures prepared with Pillow, on 7 images, each of its own size."""
    write_any_size_entry(path, path.with_name("any_size.onnx"))
    session = ort.InferenceSession(path.with_name("any_size.onnx"), providers=["CPUExecutionProvider"])
    pictures = [np.asarray(decode(file, max_pixels=10**8, alpha_background="white")) for file in files[:7]]
    given = np.concatenate([np.asarray(session.run(["logits"], {"image": each[None]})[0]) for each in pictures])
    return _relative(given, ShippedPath(exported, entry.preprocessing)(files[:7]))


def _relative(given: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(given - expected).max() / np.abs(expected).max())


def _oldest(exported: OnnxPredictor, entry: Entry, files: list[bytes], folder: Path, python: Path) -> dict[str, Any]:
    """What the oldest supported runtime answers, beside the one here."""

    def keep(images: np.ndarray) -> np.ndarray:
        np.save(folder / "images.npy", images)
        return exported(images)

    np.save(folder / "logits.npy", ShippedPath(keep, entry.preprocessing)(files[: BATCH_SIZES[-1]]))
    arguments = [str(folder / name) for name in ("float32.onnx", "images.npy", "logits.npy")]
    done = subprocess.run(  # paths of our own
        [str(python), "-c", AT_LEAST, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def passes(row: dict[str, Any]) -> bool:
    """Whether a network may be called exportable."""
    if "error" in row:
        return False
    oldest = row["oldest_onnxruntime"]
    return (
        row["agreement_outside_ties"] >= LEAST_AGREEMENT
        and not row["unfolded_normalisations"]
        and row["float_entry_error"] <= ExportSettings().tolerance
        and (row["any_size_error"] or 0.0) <= ANY_SIZE_TOLERANCE
        and (oldest is None or oldest["relative_error"] <= ExportSettings().tolerance)
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | px | parameters | MB | nodes | export s | images | largest error | same class "
        f"| ONNX Runtime {MIN_ONNXRUNTIME} | float entry | any size |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['label']} | {row['image_size']} | {row['error']} |||||||||")
            continue
        oldest = row["oldest_onnxruntime"]
        lines.append(
            f"| {row['label']} | {row['image_size']} | {row['num_parameters'] / 1e6:.2f} M "
            f"| {row['size_bytes'] / 1e6:.2f} | {row['num_nodes']} | {row['export_seconds']:.1f} | {row['num_images']} "
            f"| {row['relative_error']:.1e} | {row['agreement']:.2%} "
            f"| {'not run' if oldest is None else format(oldest['relative_error'], '.1e')} "
            f"| {row['float_entry_error']:.1e} "
            f"| {'' if row['any_size_error'] is None else format(row['any_size_error'], '.1e')} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str]:
    """What the figures belong to."""
    packages = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
    return {"machine": platform.machine(), "python": platform.python_version(), **{n: version(n) for n in packages}}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose label this expression finds")
    parser.add_argument("--min-python", type=Path, help=f"a Python with onnxruntime {MIN_ONNXRUNTIME} and numpy")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    written = arguments.results / "export_list.json"
    earlier = json.loads(written.read_text())["networks"] if written.is_file() else []
    rows = {row["label"]: row for row in earlier}
    for entry in entries():
        if not re.search(arguments.only, entry.label):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = measure(entry, Path(folder), arguments.min_python)
            except Exception as error:  # one network's failure must not hide the others
                traceback.print_exc()
                row = {
                    "label": entry.label,
                    "image_size": entry.size,
                    "error": f"{type(error).__name__}: {error}"[:200],
                }
        rows[entry.label] = row
        print(json.dumps(row), flush=True)
        gc.collect()
        ordered = [rows[each.label] for each in entries() if each.label in rows]
        arguments.results.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps({"made_on": machine(), "networks": ordered}, indent=1) + "\n")
        (arguments.results / "export_list.md").write_text(table(ordered))
    failed = [row["label"] for row in rows.values() if not passes(row)]
    print(f"{len(rows) - len(failed)} of {len(rows)} networks pass" + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
