"""How many requests a second the server answers, and how fast, beside ONNX Runtime alone with as many threads.

    python -m benchmarks.serve.load_test --folder deploy --output load.json
    python -m benchmarks.serve.load_test --folder deploy --kinds png --clients 32 --requests 100000 --output load.json
    python -m benchmarks.serve.load_test --model '{"source": "cifar", "name": "resnet8x4"}' --image-size 32

Needs wrk (Debian: apt-get install wrk). Without a deploy folder a network with fresh weights is exported: weights do
not change what an answer costs. Prints what goes into the model card; `compress package --load-test load.json` puts it
there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve.deploy_folders import fresh_folder
from benchmarks.serve.kinds import KINDS, Kind, every_kind
from benchmarks.serve.running import Server, server
from compress.files import write_record
from compress.load_record import LoadRecord, LoadRun, serving_section
from compress.serve import ServedModel, ServeSettings, load_served_model
from pipelines.origin import cpu_name

SCRIPT = Path(__file__).with_name("post.lua")
WARM_UP = 200
"""Requests."""
TIMEOUT_S = 30
"""After which wrk counts a request as failed; the server itself gives up after 10 s."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="a deploy folder")
    source.add_argument("--model", help="settings of a network, as JSON")
    parser.add_argument("--image-size", type=int, default=32, help="with --model: side of its images in pixels")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of request; by default all that the model takes")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=2000, help="of each kind from each number of clients")
    parser.add_argument("--longest", type=int, default=900, help="seconds for these")
    parser.add_argument("--runtime-seconds", type=float, default=4, help="for ONNX Runtime alone before and after")
    parser.add_argument("--threads", type=int, default=1, help="inside one run of the model")
    parser.add_argument("--decode-threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or fresh_folder(Path(scratch), json.loads(arguments.model), arguments.image_size)
        record = measure(folder.resolve(), arguments)
    if arguments.output is not None:
        write_record(arguments.output, record.model_dump(mode="json"))
    print(serving_section(record))
    print("\nmilliseconds of the server for one request:")
    for run in record.runs:
        print(
            f"  {run.request}, {run.clients} clients: processor {run.processor_ms:.2f}, of these model "
            f"{run.model_ms:.2f}, decoding {run.decoding_ms:.2f}; not answered {run.not_answered}, "
            f"statuses {run.by_server}"
        )


def measure(folder: Path, arguments: argparse.Namespace) -> LoadRecord:
    """Every kind of request from every number of clients, and the golden images before and after."""
    load_average = os.getloadavg()[0]
    settings = ServeSettings(
        folder=folder,
        port=0,
        threads=arguments.threads,
        decode_threads=arguments.decode_threads,
        log_requests=False,
    )
    model = load_served_model(settings)
    kinds = every_kind(model)
    with server(settings) as running:
        _require_golden(running)
        runs = [
            one_run(running, kinds[name], model, clients=clients, arguments=arguments)
            for name in arguments.kinds or kinds
            for clients in arguments.clients
        ]
        _require_golden(running)
        resident_mb = running.resident_mb()
    return LoadRecord(
        model_sha256=model.sha256,
        tool=wrk_version(),
        measured_on=datetime.now(UTC).date(),
        machine=machine(),
        load_average=round(load_average, 2),
        versions=versions(),
        threads=arguments.threads,
        decode_threads=arguments.decode_threads,
        server_resident_mb=round(resident_mb, 1),
        runs=tuple(runs),
    )


def one_run(running: Server, kind: Kind, model: ServedModel, *, clients: int, arguments: argparse.Namespace) -> LoadRun:
    """The model alone, a short run to warm up, the run, the model alone again."""
    alone = [runtime_rate(model, arguments.runtime_seconds)]
    wrk(running.url, kind, clients=clients, requests=WARM_UP, longest=arguments.longest)
    before = running.metrics()
    told = wrk(running.url, kind, clients=clients, requests=arguments.requests, longest=arguments.longest)
    after = running.metrics()
    alone.append(runtime_rate(model, arguments.runtime_seconds))
    if told["requests"] < arguments.requests:
        raise SystemExit(
            f"{kind.words}, {clients} clients: {told['requests']} of {arguments.requests} requests within "
            f"{arguments.longest} s, {told['not_answered']} not answered; give it --longest"
        )
    counted = {name: after[name] - before.get(name, 0.0) for name in after}
    runtime = sum(alone) / len(alone)
    rate = told["answered"] / told["seconds"]
    return LoadRun(
        request=kind.words,
        clients=clients,
        **told,
        by_server=statuses(counted, kind.route),
        requests_per_second=round(rate, 1),
        runtime_images_per_second=round(runtime, 1),
        share_of_runtime=round(rate / runtime, 3),
        **costs(counted, num_requests=told["requests"]),
    )


def statuses(counted: dict[str, float], route: str) -> dict[str, int]:
    """The server's own count of answers on one route, by status."""
    label = re.compile(rf'compress_serve_requests_total{{route="{route}",status="(\d+)"}}')
    found = {match[1]: int(count) for name, count in counted.items() if (match := label.fullmatch(name))}
    return {status: count for status, count in sorted(found.items()) if count}


def costs(counted: dict[str, float], *, num_requests: int) -> dict[str, float]:
    """Milliseconds: processor time of the server for a request; the model's for an image; decoding's for a picture."""

    def mean(name: str, number: float) -> float:
        return round(1000 * counted[name] / max(number, 1), 3)

    return {
        "processor_ms": mean("process_cpu_seconds_total", num_requests),
        "model_ms": mean("compress_serve_run_seconds_sum", counted["compress_serve_run_images_sum"]),
        "decoding_ms": mean("compress_serve_decode_seconds_sum", counted["compress_serve_decode_seconds_count"]),
    }


def runtime_rate(model: ServedModel, seconds: float) -> float:
    """Images a second of ONNX Runtime alone, one call after the other, after a tenth of the time for warming up."""
    image = np.random.default_rng(0).integers(0, 256, (1, *model.image_shape), dtype=np.uint8)
    total, elapsed = 0, 0.0
    for duration in (seconds / 10, seconds):
        total, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < duration:
            model(image)
            total += 1
    return total / elapsed


def wrk(url: str, kind: Kind, *, clients: int, requests: int, longest: int) -> dict[str, Any]:
    """What wrk says once it has `requests` answers; it can stop by time only, so that its script tells when to."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(kind.body)
        body.flush()
        headers = "\n".join(f"{name}: {value}" for name, value in kind.headers.items())
        given = {**os.environ, "BODY": body.name, "HEADERS": headers, "REQUESTS": str(requests)}
        command = ["wrk", "-t1", f"-c{clients}", f"-d{longest}s", f"--timeout={TIMEOUT_S}s", "-s", str(SCRIPT)]
        last = ""
        with subprocess.Popen([*command, url + kind.path], env=given, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "enough\n":
                    process.send_signal(signal.SIGINT)
                last = line
    if process.returncode != 0 or not last.startswith("{"):
        raise SystemExit(f"wrk failed: {last}")
    return json.loads(last)


def wrk_version() -> str:
    """Such as wrk 4.1.0."""
    told = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout
    return " ".join(told.split()[:2]).removesuffix("-")


def machine() -> str:
    """Processor and cores."""
    return f"{cpu_name()}, {len(os.sched_getaffinity(0))} core(s)"


def versions() -> dict[str, str]:
    """Of what answers."""
    packages = ("onnxruntime", "starlette", "uvicorn", "pillow", "numpy")
    return {"Python": platform.python_version(), **{name: version(name) for name in packages}}


def _require_golden(running: Server) -> None:
    if not running.answers_golden():
        raise SystemExit("the server does not answer the golden images as the folder says; compress verify tells more")


if __name__ == "__main__":
    main()
