"""The whole way from an image file to logits, twice: as it is shipped, and as torchvision has it.

Comparing both holds decoding, resizing and cropping to the published meaning, not only the network's arithmetic.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from compress.data.decoding import LARGEST_MAX_PIXELS, decode
from compress.data.prepared import PreparedData
from compress.data.preprocessing import Preprocessing, preprocess
from compress.data.source import SplitName
from compress.types import IndexArray, LogitArray, Predictor


@final
class ShippedPath:
    """Image files to logits as a user of the exported file goes: our decoding and resizing, then the predictor."""

    def __init__(self, predict: Predictor, preprocessing: Preprocessing) -> None:
        self._predict = predict
        self._preprocessing = preprocessing

    def __call__(self, files: Sequence[bytes], /) -> LogitArray:
        """Logits (B C) of image files.

        Raises:
            UnreadableImageError: a file is no image, or of a size that the preprocessing refuses.
        """
        background = self._preprocessing.alpha_background
        pictures = [decode(file, max_pixels=LARGEST_MAX_PIXELS, alpha_background=background) for file in files]
        return self._predict(np.stack([preprocess(picture, self._preprocessing) for picture in pictures]))


@final
class TorchvisionPath:
    """Image files to logits with nothing of ours but the network: Pillow, torchvision's transforms, torch.

    For pictures without transparency: torchvision has no rule for it. Runs on the CPU.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        self._network = network.eval()
        self._transform = _torchvision_transform(preprocessing)

    def __call__(self, files: Sequence[bytes], /) -> LogitArray:
        """Logits (B C) of image files."""
        pictures: list[torch.Tensor] = []
        for file in files:
            with Image.open(io.BytesIO(file)) as picture:
                upright = ImageOps.exif_transpose(picture)
                pictures.append(self._transform(upright.convert("RGB")))
        with torch.inference_mode():
            return self._network(torch.stack(pictures)).float().numpy()


def stored_files(data: PreparedData, split: SplitName, indices: IndexArray) -> list[bytes]:
    """Image files of a prepared split: their own bytes where these were kept, otherwise their pixels as PNG.

    Pictures that torchvision has no rule for, transparent ones and those of more than 8 bits, are given as PNG of what
    they mean to us.
    """
    images = data.split(split)
    images.check_indices(indices)
    if data.manifest.storage == "arrays":
        return [as_png(np.asarray(images.picture(int(index)))) for index in indices]
    offsets = np.load(data.folder / f"{split}.offsets.npy", allow_pickle=False)
    content = np.memmap(data.folder / f"{split}.images.bin", dtype=np.uint8, mode="r")
    files = [content[offsets[index] : offsets[index + 1]].tobytes() for index in indices]
    return [
        file if _is_plain(file) else as_png(np.asarray(images.picture(int(index))))
        for index, file in zip(indices, files, strict=True)
    ]


def _is_plain(file: bytes) -> bool:
    with Image.open(io.BytesIO(file)) as picture:
        return picture.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") and not picture.has_transparency_data


def as_png(pixels: np.ndarray) -> bytes:
    """An uint8 picture (H W 3) as a PNG file, which keeps every pixel."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _torchvision_transform(preprocessing: Preprocessing) -> Any:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    resize = preprocessing.resize
    steps: list[Any] = []
    if resize is not None:
        steps.append(transforms.Resize(resize.shorter_side, InterpolationMode(resize.interpolation), antialias=True))
        steps.append(transforms.CenterCrop((preprocessing.height, preprocessing.width)))
    return transforms.Compose([*steps, transforms.ToTensor()])
