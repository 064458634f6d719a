"""All that is to be known of a GPU, in one run of at most ten minutes and one JSON file.

python -m benchmarks.gpu --out FILE [--seconds 570] [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.gpu.carry import use_carried


def main() -> None:
    """Run every section; each fails on its own."""
    arguments = _arguments()
    carried = use_carried()
    import torch  # behind the packages that were carried

    from benchmarks.gpu import workload

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    scale = workload.quick(device) if arguments.quick else workload.Scale(device)
    if arguments.imagenet_step is not None:
        from benchmarks.gpu.imagenet import imagenet_step

        is_compiled = arguments.imagenet_step == "compiled"
        print(json.dumps(imagenet_step(scale, compiled=is_compiled, seconds=arguments.seconds)))
        return
    _run_all(scale, arguments, carried)


def _run_all(scale: object, arguments: argparse.Namespace, carried: str) -> None:
    from benchmarks.gpu import checks, cifar, imagenet, machine, workload
    from benchmarks.gpu.report import Report

    assert isinstance(scale, workload.Scale)
    facts = {
        "machine": machine.machine(scale.device),
        "packages": carried,
        "quick": arguments.quick,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    report = Report(arguments.out, seconds=arguments.seconds, facts=facts)
    total = arguments.seconds
    report.add("peak", lambda seconds: machine.peak(scale, seconds), seconds=0.05 * total)
    matmul = report.content["sections"]["peak"].get("bf16_matmul_tflops")
    report.add("checks", lambda seconds: checks.checks(scale, seconds), seconds=0.15 * total)
    report.add("step", lambda seconds: cifar.step_times(scale, seconds, peak_tflops=matmul), seconds=0.1 * total)
    for name, num_students in (("one_student", 1), ("six_students", 6)):
        report.add(
            name,
            lambda seconds, count=num_students: cifar.whole_recipe(scale, seconds, num_students=count),
            seconds=0.2 * total,
        )
    report.add(
        "imagenet",
        lambda seconds: imagenet.both(scale, seconds, is_quick=arguments.quick, peak_tflops=matmul),
        seconds=0.4 * total,
    )
    print(f"written to {arguments.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Measure training on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"), help="file to write")
    parser.add_argument("--seconds", type=float, default=570.0, help="that the whole run may take")
    parser.add_argument("--quick", action="store_true", help="tiny networks and little data: does it run at all")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default the GPU where there is one")
    parser.add_argument("--imagenet-step", choices=("eager", "compiled"), help="measure this alone and print it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
