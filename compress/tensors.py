"""Images on their way from storage into a network."""

from __future__ import annotations

import torch

from compress.types import ByteImages, FloatImages


def as_float_images(images: ByteImages, device: torch.device) -> FloatImages:
    """Stored pixels as float32 in [0, 1] on a device, in channels-last memory: the layout they already have."""
    if device.type == "cuda":
        images = images.pin_memory()
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
