"""Images on their way from storage into a network."""

from __future__ import annotations

import torch

from compress.types import ByteImages, FloatImages


def as_float_images(images: ByteImages, device: torch.device) -> FloatImages:
    """Stored pixels as float32 in [0, 1] on a device, in channels-last memory: the layout they already have."""
    return to_device(images, device).permute(0, 3, 1, 2).float().div_(255)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values on a device; to a GPU from memory that it reads by itself, so that the host need not wait."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
