"""A small project of its own: sixty pictures of three colours, a teacher, three students, a minute for everything."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

COLOURS = ("red", "green", "blue")
TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 16, "precision": "float32", "threads": 1}


def write_images(folder: Path, *, per_class: int = 20, size: int = 8) -> Path:
    """PNG files of noisy colours in class folders."""
    random = np.random.default_rng(0)
    for channel, colour in enumerate(COLOURS):
        (folder / colour).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 130, (size, size, 3), dtype=np.uint8)
            pixels[:, :, channel] += 60
            Image.fromarray(pixels).save(folder / colour / f"{number:03}.png")
    return folder


def params(images: Path) -> dict[str, Any]:
    """Every kind of row once; nothing in it is shared, so a test may change what it likes."""
    small = {"source": "cnn", "channels": [4, 4]}
    return {
        "data": {"source": {"name": "image_folder", "path": str(images)}, "validation_fraction": 0.2},
        "views": {"augmentation": {"name": "pad_crop_flip", "pad": 1}, "views_per_image": 2},
        "teacher": {"model": {"source": "cnn", "channels": [8, 8]}, "train": dict(TRAIN)},
        "teacher_logits": {"dtype": "float16", "threads": 1},
        "students": {
            "distilled": {
                "with_kd": {"model": small, "method": {"name": "kd"}, "train": dict(TRAIN), "seeds": [0, 1]},
                "with_nkd": {"model": small, "method": {"name": "nkd"}, "train": dict(TRAIN)},
            },
            "teacher_free": {"alone": {"model": small, "method": {"name": "cross_entropy"}, "train": dict(TRAIN)}},
        },
        "export": {"num_parity_images": 8},
        "evaluate": {"threads": 1, "benchmark": {"min_seconds": 0.05, "min_rounds": 3}},
        "select": {"max_size_mb": 1.0},
    }


def write_params(root: Path, values: dict[str, Any]) -> None:
    """Make `values` the project's params.yaml."""
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def make_project(root: Path) -> Path:
    """A folder with pictures and params.yaml."""
    root.mkdir(parents=True, exist_ok=True)
    write_params(root, params(write_images(root / "pictures")))
    return root
