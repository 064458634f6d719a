"""What the numbers belong to, and what the machine reaches at best."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from benchmarks.gpu.workload import Scale, seconds_per_call
from benchmarks.peak import convolution_peak


def machine(device: torch.device) -> dict[str, Any]:
    """Names and versions."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": list(torch.cuda.get_device_capability(device)),
        }
    return facts


def peak(scale: Scale, seconds: float) -> dict[str, Any]:
    """TFLOP/s of a large matrix product and of a large convolution in bfloat16, on random numbers."""
    size, device = scale.peak_size, scale.device
    first, second = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    taken = seconds_per_call(lambda: first @ second, device, rounds=10)
    rounds = 9 if seconds > 5 else 3
    return {
        "bf16_matmul_tflops": round(2 * size**3 / taken / 1e12, 3),
        "bf16_convolution_tflops": round(convolution_peak(torch.bfloat16, device, rounds=rounds) / 1e12, 3),
        "matmul": f"{size} x {size} x {size}",
        "convolution": "3x3, 64 x 128 x 32 x 32, channels last",
    }
