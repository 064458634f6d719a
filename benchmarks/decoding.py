"""Views of photos a second on one thread: Pillow as we use it, and torchvision's decoder in two ways.

    python -m benchmarks.decoding --data imagenet-samples.zip       # half a minute

Says how many pictures and pixels come out equal, too. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from compress.data.decoding import LARGEST_MAX_PIXELS, decode

SIZE = 224
NUM_ROUNDS = 5


class Photo(NamedTuple):
    """A JPEG file and what is cropped of it: left, top, right, bottom."""

    content: bytes
    box: tuple[int, int, int, int]


def pillow(photo: Photo) -> np.ndarray:
    """As the pipeline does it."""
    picture = decode(photo.content, max_pixels=LARGEST_MAX_PIXELS, alpha_background="white")
    return np.asarray(picture.crop(photo.box).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def torchvision_then_pillow(photo: Photo) -> np.ndarray:
    """Decoded by torchvision, cropped, then Pillow's."""
    left, top, right, bottom = photo.box
    cropped = _decoded(photo).permute(1, 2, 0).numpy()[top:bottom, left:right]
    return np.asarray(Image.fromarray(cropped).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def torchvision_alone(photo: Photo) -> np.ndarray:
    """Decoded and resized by torch."""
    left, top, right, bottom = photo.box
    cropped = _decoded(photo)[None, :, top:bottom, left:right]
    resized = F.interpolate(cropped, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _decoded(photo: Photo) -> torch.Tensor:
    content = torch.frombuffer(bytearray(photo.content), dtype=torch.uint8)
    decoded = decode_jpeg(content, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    assert isinstance(decoded, torch.Tensor)
    return decoded


WAYS: dict[str, Callable[[Photo], np.ndarray]] = {
    "pillow": pillow,
    "torchvision_then_pillow": torchvision_then_pillow,
    "torchvision_alone": torchvision_alone,
}


def main() -> None:
    """Compare, time in turns, print."""
    parser = argparse.ArgumentParser(description="Views of photos a second.")
    parser.add_argument("--data", type=Path, required=True, help="zip of JPEG files")
    parser.add_argument("--photos", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = read(options.data, options.photos)
    views = {name: [way(photo) for photo in photos] for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(NUM_ROUNDS):
        for name, way in WAYS.items():
            started = time.process_time()
            for photo in photos:
                way(photo)
            seconds[name].append(time.process_time() - started)
    print(
        json.dumps(
            {
                name: {
                    "views_per_second": round(len(photos) / statistics.median(seconds[name])),
                    "equal_values": float(
                        np.mean([np.mean(a == b) for a, b in zip(views["pillow"], made, strict=True)])
                    ),
                }
                for name, made in views.items()
            }
        )
    )


def read(archive: Path, count: int) -> list[Photo]:
    """The first JPEG files of an archive, each with a crop of random area."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.lower().endswith((".jpg", ".jpeg"))][:count]
        return [_photo(opened.read(name), draw) for name in names]


def _photo(content: bytes, draw: np.random.Generator) -> Photo:
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
    share = draw.uniform(0.08, 1.0) ** 0.5
    crop_width, crop_height = max(1, int(width * share)), max(1, int(height * share))
    left, top = (int(draw.integers(spare, endpoint=True)) for spare in (width - crop_width, height - crop_height))
    return Photo(content, (left, top, left + crop_width, top + crop_height))


if __name__ == "__main__":
    main()
