"""What the machine's convolutions reach at best: the limit that training is held against."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from compress.device import autocast

SHAPE = (64, 128, 32, 32)


def convolution_peak(dtype: torch.dtype, device: torch.device, *, rounds: int = 9) -> float:
    """Floating-point operations per second of a large 3x3 convolution, the median of several rounds."""
    images = torch.randn(SHAPE, device=device).to(memory_format=torch.channels_last).to(dtype)
    weight = torch.randn(SHAPE[1], SHAPE[1], 3, 3, device=device).to(memory_format=torch.channels_last).to(dtype)
    batch, channels, height, width = SHAPE
    flops = 2 * batch * height * width * channels * channels * 9
    seconds: list[float] = []
    with torch.inference_mode(), autocast(device, dtype):
        for _ in range(rounds + 2):
            synchronize(device)
            started = time.perf_counter()
            for _ in range(4):
                F.conv2d(images, weight, padding=1)
            synchronize(device)
            seconds.append((time.perf_counter() - started) / 4)
    return flops / statistics.median(seconds[2:])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
