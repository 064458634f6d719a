"""How many pictures a second the server answers, beside what ONNX Runtime alone does at the same number of threads.

    python -m benchmarks.serve.load_test --folder deploy
    python -m benchmarks.serve.load_test --model '{"source": "cifar", "name": "resnet8x4"}' --image-size 32

Needs wrk (Debian: apt-get install wrk). Without a deploy folder a network with fresh weights is exported: weights do
not change what an answer costs. Prints one JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from compress.serve import ServedModel, ServeSettings, load_served_model
from compress.serve.images import ImageReader
from compress.serve.settings import Limits

SCRIPT = Path(__file__).with_name("post.lua")
PHOTO_SIZE = (500, 375)
WARM_UP_S = 1
SERVE = "import sys; from compress.serve import *; serve(ServeSettings.model_validate_json(sys.argv[1]))"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="a deploy folder")
    source.add_argument("--model", help="settings of a network, as JSON")
    parser.add_argument("--image-size", type=int, default=32, help="with --model: side of its images in pixels")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=int, default=10, help="for each number of clients and kind of picture")
    parser.add_argument("--threads", type=int, default=1, help="inside one run of the model")
    parser.add_argument("--decode-threads", type=int, default=2)
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or fresh_folder(Path(scratch), json.loads(arguments.model), arguments.image_size)
        settings = ServeSettings(
            folder=folder.resolve(),
            port=0,
            threads=arguments.threads,
            decode_threads=arguments.decode_threads,
            log_requests=False,
        )
        print(
            json.dumps(measure(settings, Path(scratch), clients=arguments.clients, seconds=arguments.seconds), indent=2)
        )


def measure(settings: ServeSettings, scratch: Path, *, clients: list[int], seconds: int) -> dict[str, Any]:
    """Everything, in this order: the model alone, decoding alone, the server."""
    model = load_served_model(settings)
    pictures = write_pictures(model, scratch)
    runtime = {f"batch_{size}": run_speed(model, size, seconds) for size in (1, model.max_batch)}
    decoding = {name: decode_speed(model, path, seconds) for name, path in pictures.items()}
    with server(settings) as url:
        rows: list[dict[str, Any]] = [
            {"picture": name, **load(url, path, clients=number, seconds=seconds)}
            for name, path in pictures.items()
            for number in clients
        ]
        resident_mb = metric(url, "process_resident_memory_bytes") / 1e6
    for row in rows:
        row["share_of_runtime"] = round(row["requests_per_second"] / runtime["batch_1"]["images_per_second"], 3)
    return {
        "machine": machine(),
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "image": model.image_shape,
            "classes": len(model.classes),
        },
        "settings": settings.model_dump(mode="json", include={"threads", "decode_threads", "max_delay_ms"}),
        "onnxruntime_alone": runtime,
        "decoding_alone": decoding,
        "server": rows,
        "server_resident_mb": round(resident_mb, 1),
    }


def fresh_folder(scratch: Path, source: dict[str, Any], image_size: int) -> Path:
    """A deploy folder with a network of fresh weights."""
    import onnxruntime
    from pydantic import JsonValue, TypeAdapter

    from compress.data.preprocessing import resize_and_crop
    from compress.deploy_manifest import write_manifest
    from compress.export import ExportSettings, export_onnx
    from compress.models import ModelSource, Statistics, build_network
    from compress.verify import write_golden

    size = (image_size, image_size)
    classes = [f"class {number}" for number in range(100)]
    network = build_network(
        TypeAdapter[Any](ModelSource).validate_python(source),
        num_classes=len(classes),
        image_size=size,
        statistics=Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    crop_fraction = 1.0 if image_size <= 64 else 0.875
    rule = resize_and_crop(image_size, crop_fraction=crop_fraction, interpolation="bilinear", alpha_background="white")
    metadata: dict[str, JsonValue] = {
        "name": "fresh",
        "classes": [*classes],
        "preprocessing": rule.model_dump(mode="json"),
    }
    folder = scratch / "deploy"
    export_onnx(network, folder / "model.onnx", image_size=size, settings=ExportSettings(), metadata=metadata)
    (folder / "labels.json").write_text(json.dumps(classes))
    images = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    write_golden(folder, images, np.asarray(session.run(["logits"], {"image": images})[0]))
    write_manifest(folder)
    return folder


def write_pictures(model: ServedModel, scratch: Path) -> dict[str, Path]:
    """What clients send: a PNG of the model's own size and, where the model resizes, a photo."""
    height, width, _ = model.image_shape
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    # Noise enlarged: it compresses like a photo, where noise itself would not compress at all.
    photo = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(PHOTO_SIZE)
    pictures = {f"png_{width}x{height}": (small, "PNG")}
    if model.preprocessing.resize is not None:
        pictures[f"jpeg_{PHOTO_SIZE[0]}x{PHOTO_SIZE[1]}"] = (photo, "JPEG")
    paths: dict[str, Path] = {}
    for name, (image, file_format) in pictures.items():
        buffer = io.BytesIO()
        image.save(buffer, file_format)
        paths[name] = scratch / name
        paths[name].write_bytes(buffer.getvalue())
    return paths


def run_speed(model: ServedModel, batch_size: int, seconds: int) -> dict[str, float]:
    """ONNX Runtime alone, one call after the other."""
    images = np.zeros((batch_size, *model.image_shape), dtype=np.uint8)
    return speed(lambda: model(images), batch_size, seconds)


def decode_speed(model: ServedModel, path: Path, seconds: int) -> dict[str, float]:
    """Decoding and preprocessing alone, one after the other."""
    read, content = ImageReader(model.preprocessing, Limits()), path.read_bytes()
    return speed(lambda: read(content), 1, seconds)


def speed(call: Callable[[], object], num_images: int, seconds: int) -> dict[str, float]:
    """Images a second and processor time for one, after a tenth of the time for warming up."""
    elapsed = processor_s = 0.0
    total = 0
    for duration in (seconds / 10, float(seconds)):
        total, start, processor_start = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - start) < duration:
            call()
            total += num_images
        processor_s = time.process_time() - processor_start
    return {
        "images_per_second": round(total / elapsed, 1),
        "processor_ms_per_image": round(1000 * processor_s / total, 3),
    }


@contextmanager
def server(settings: ServeSettings) -> Generator[str]:
    """The server in a process of its own; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, settings.model_dump_json()], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["url"]
        deadline = time.monotonic() + 30
        while not answers(url):
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether the server is up."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready"):  # noqa: S310  our own server
            return True
    except OSError:
        return False


def metric(url: str, name: str) -> float:
    """A number of the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as response:  # noqa: S310  our own server
        lines = response.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def load(url: str, picture: Path, *, clients: int, seconds: int) -> dict[str, Any]:
    """One run of wrk after a short one to warm up, and what the server's processor time was for a request."""
    wrk(url, picture, clients=clients, seconds=WARM_UP_S)
    before = metric(url, "process_cpu_seconds_total")
    told = wrk(url, picture, clients=clients, seconds=seconds)
    processor_s = metric(url, "process_cpu_seconds_total") - before
    return {
        "clients": clients,
        "requests_per_second": round(told["requests"] / told["seconds"], 1),
        **{key: told[key] for key in ("p50_ms", "p90_ms", "p99_ms", "not_answered")},
        "server_processor_ms_per_request": round(1000 * processor_s / max(told["requests"], 1), 3),
    }


def wrk(url: str, picture: Path, *, clients: int, seconds: int) -> dict[str, Any]:
    """What wrk says."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", str(SCRIPT), f"{url}/classify"]
    done = subprocess.run(command, env={**os.environ, "BODY": str(picture)}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Where it was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "starlette", "uvicorn", "pillow", "numpy")},
    }


if __name__ == "__main__":
    main()
