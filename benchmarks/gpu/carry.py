"""Fetch the few packages that a GPU machine without a network may lack: pure or small wheels, about 10 MB.

    python -m benchmarks.gpu.carry     # on a machine with pip and a package index; fills benchmarks/gpu/site/

The folder travels with the checkout, git ignores it, and `python -m benchmarks.gpu` finds it. The versions are those of
requirements.lock; the wheels are for Python 3.12 on Linux x86-64.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "annotated-types",
    "jaxtyping",
    "pydantic",
    "pydantic-core",
    "safetensors",
    "typing-extensions",
    "typing-inspection",
    "wadler-lindig",
)
PYTHON = (3, 12)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
SITE = Path(__file__).parent / "site"
LOCK = Path(__file__).parents[2] / "requirements.lock"
MOST_BYTES = 40 << 20


def pinned(lock: str) -> list[str]:
    """The packages with the versions of a lock file."""
    versions = dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", lock, flags=re.MULTILINE))
    return [f"{name}=={versions[name]}" for name in PACKAGES]


def command(requirements: list[str], site: Path) -> list[str]:
    """What pip is asked; without dependencies, for all of them are listed."""
    version = ".".join(map(str, PYTHON))
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms),
        *("--target", str(site), *requirements),
    ]


def use_carried() -> str:
    """Put the folder first on the path where it is there and fits this Python; says what was done."""
    if not SITE.is_dir():
        return "nothing carried"
    if sys.version_info[:2] != PYTHON:
        return f"carried packages are left out: they are for Python {PYTHON}, this is {sys.version_info[:2]}"
    sys.path.insert(0, str(SITE))
    return "carried packages are used"


def main() -> None:
    """Fill the folder anew."""
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run(command(pinned(LOCK.read_text()), SITE), check=True)
    for cache in SITE.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        sys.exit(f"{SITE} has {size / 2**20:.0f} MiB, more than {MOST_BYTES >> 20}: take a package out")
    print(f"{SITE}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
