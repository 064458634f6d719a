"""What a trained network's card says beside its settings, so that one card is enough to train the network again."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from compress.fingerprint import file_sha256

if TYPE_CHECKING:
    from compress.device import DeviceName

LOCK = "requirements.lock"
CODE_PATHS = ("params.yaml", "dvc.yaml", "compress", "pipelines")
"""What counts as changed code; over the whole tree it would always be changed, since DVC itself edits dvc.lock."""
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Whose version may decide a weight."""
LOCAL = ("checkpoint", "folder")
"""Settings of a model that are paths."""
CPU_INFO = Path("/proc/cpuinfo")
GIT_SECONDS = 10


def origin_of(
    recipe: dict[str, Any], *, code: str, device: DeviceName, threads: int | None, root: Path
) -> dict[str, JsonValue]:
    """How to train a network again, and where it was trained; `root` is the project's folder."""
    return {
        "recipe": recipe,
        "training_code_sha256": code,
        **commit_of(root),
        "lock_sha256": file_sha256(root / LOCK) if (root / LOCK).is_file() else None,
        "versions": versions(),
        "machine": {"processor": processor(device), "threads": threads},
    }


def without_machine(origin: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    """What an exported file says of it: no paths, and the same file for the same weights from two machines."""
    if origin is None:
        return None
    kept = {key: value for key, value in origin.items() if key != "machine"}
    return {**kept, "recipe": settings_of(origin["recipe"])}


def settings_of(recipe: Any) -> dict[str, JsonValue]:
    """A recipe without what only one machine has; the hash of the data stands in the lineage."""
    model = {key: value for key, value in recipe["model"].items() if key not in LOCAL}
    kept = ("method", "train", "views", "seed", "quantization_aware")
    return {"model": model, **{key: recipe[key] for key in kept if key in recipe}}


def commit_of(root: Path) -> dict[str, JsonValue]:
    """The commit that is checked out, and whether code or params.yaml differ from it; None where there is no git."""
    commit = git(root, "rev-parse", "HEAD")
    changed = None if commit is None else bool(git(root, "status", "--porcelain", "--", *CODE_PATHS))
    return {"commit": commit, "commit_changed": changed}


def versions() -> dict[str, JsonValue]:
    """Of Python and of the packages that compute."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def processor(device: DeviceName) -> str:
    """Name of the CPU or GPU that trains."""
    import torch

    from compress.device import resolve_device

    if resolve_device(device).type == "cuda":
        return torch.cuda.get_device_name()
    return cpu_name()


def cpu_name() -> str:
    """Name of the CPU; /proc/cpuinfo knows it better than the standard library does."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, no repository or no commit yet."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
