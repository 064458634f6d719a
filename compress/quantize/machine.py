"""What the processor of this machine does with pairs of 8-bit products."""

from __future__ import annotations

import platform
from pathlib import Path

X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
CPU_INFO = Path("/proc/cpuinfo")


def has_vnni() -> bool | None:
    """Whether sums of 8-bit products are exact here; True off x86, None where it cannot be told."""
    return vnni_in(CPU_INFO) if platform.machine().lower() in X86 else True


def vnni_in(cpu_info: Path) -> bool | None:
    """The same by the flags that Linux lists for an x86 processor."""
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), None)
    return None if flags is None else not flags.isdisjoint({"avx512_vnni", "avx_vnni"})
