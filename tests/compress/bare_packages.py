"""What is left of an environment where next to nothing is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def link_packages(folder: Path) -> Path:
    """Put onnxruntime and numpy, and nothing else, into an empty folder of packages."""
    for name in ("onnxruntime", "numpy"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        installed = Path(spec.origin).parent
        for package in (installed, installed.with_name(f"{name}.libs")):
            if package.exists():
                (folder / package.name).symlink_to(package)
    return folder
