"""What Linux says of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.quantize.machine import has_vnni, vnni_in


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512_vnni", True), ("avx_vnni sse", True), ("fpu avx2 avx512f", False), ("avx512_vnni_like", False)],
)
def test_flags_tell_whether_there_is_vnni(flags: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n")
    assert vnni_in(tmp_path / "cpuinfo") is expected


def test_without_flags_nothing_is_known(tmp_path: Path) -> None:
    assert vnni_in(tmp_path / "cpuinfo") is None
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    assert vnni_in(tmp_path / "cpuinfo") is None


def test_this_machine_has_an_answer() -> None:
    assert has_vnni() in (True, False, None)
