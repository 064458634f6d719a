"""A network as a Predictor: what exported files are compared with."""

from __future__ import annotations

import copy
from typing import final

import numpy as np
import torch
from torch import nn

from compress.tensors import as_float_images
from compress.types import LogitArray


@final
class TorchPredictor:
    """A network as it is now, in evaluation mode on a device: uint8 images (B H W 3) in, float32 logits (B C) out.

    It keeps a copy, so training on does not change its answers. Compare exported files on the CPU: a GPU rounds
    convolutions to fewer bits by default.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network = copy.deepcopy(network).to(device).eval()
        self._device = device

    def __call__(self, images: np.ndarray, /) -> LogitArray:
        """Raw images in, logits out."""
        # torch.tensor copies, because from_numpy warns about memory-mapped images, which cannot be written to.
        with torch.inference_mode():
            logits = self._network(as_float_images(torch.tensor(images), self._device))
        return logits.float().cpu().numpy()
