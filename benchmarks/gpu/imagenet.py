"""ImageNet sized training: ResNet34 teaches ResNet18 at batch 1024, in bfloat16, the teacher online.

    python -m benchmarks.gpu --imagenet-step compiled     # prints one JSON object

A step is measured in a process of its own, so that torch.compile can be given a time limit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.gpu.workload import (
    Scale,
    epoch_seconds,
    imagenet_data,
    imagenet_network,
    noted_warnings,
    recipe,
    teacher_pass,
    trainee,
)
from compress.models import count_flops
from compress.teacher_logits import OnlineTeacher
from compress.teacher_logits_writer import sample_views
from compress.teacher_pass import fold_batch_norms

IMAGENET = 1_281_167
EPOCHS = 100


def imagenet_step(scale: Scale, *, compiled: bool, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step, whole epochs of a few batches at a time; validation is left out of the clock."""
    data = imagenet_data(scale)
    teacher, student = (imagenet_network(name, scale) for name in scale.imagenet_pair)
    size = (scale.imagenet_size, scale.imagenet_size)
    flops = 3 * count_flops(student, size) + count_flops(teacher, size)
    asked = teacher_pass(teacher, data, scale.device, "bfloat16")
    folded, _ = fold_batch_norms(teacher, sample_views(data.train, data.views, num_samples=1, device=scale.device))
    settings = recipe(scale, batch_size=scale.imagenet_batch, precision="bfloat16", epochs=6)
    one = trainee(student, data, settings, teacher=OnlineTeacher(folded, "bfloat16"))
    if compiled:
        one.state.network.compile()
        folded.compile()
    with noted_warnings() as warned:
        epoch_seconds([one], data, scale.device, seconds=seconds)
    speeds = [report.images_per_second for report in one.state.history]
    speed = statistics.median(speeds[1:])
    return {
        "pair": " -> ".join(scale.imagenet_pair),
        "batch_size": scale.imagenet_batch,
        "compiled": compiled,
        "ms_per_step": round(1000 * scale.imagenet_batch / speed, 2),
        "images_per_second": round(speed, 1),
        "tflops": round(speed * flops / 1e12, 3),
        f"hours_for_{EPOCHS}_epochs": round(EPOCHS * IMAGENET / speed / 3600, 2),
        "hours_how": "extrapolated from this step; images already on the GPU, no decoding",
        "batch_norms_folded": asked.num_folded,
        "teacher_bf16_logit_error": asked.error,
        "epochs_run": len(speeds),
        "warnings": warned,
    }


def both(scale: Scale, seconds: float, *, is_quick: bool, peak_tflops: float | None) -> dict[str, Any]:
    """Without and, if that ends in time, with torch.compile; each in a process of its own."""
    found: dict[str, Any] = {}
    for name, share in (("eager", 0.45), ("compiled", 0.5)):
        found[name] = _in_a_process(scale, name == "compiled", seconds * share, is_quick=is_quick)
        if peak_tflops and "tflops" in found[name]:
            found[name]["share_of_bf16_matmul_peak"] = round(found[name]["tflops"] / peak_tflops, 4)
    return found


def _in_a_process(scale: Scale, compiled: bool, seconds: float, *, is_quick: bool) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.gpu", "--device", scale.device.type]
    words += ["--imagenet-step", "compiled" if compiled else "eager"]
    words += ["--seconds", str(round(seconds / 3, 1)), *(["--quick"] * is_quick)]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} seconds"}
    if ended.returncode != 0:
        return {"error": f"exit code {ended.returncode}", "traceback": ended.stderr[-2000:]}
    return json.loads(ended.stdout.splitlines()[-1])
