"""Devices and precisions that are there, and clear words for those that are not."""

import platform
import subprocess
import sys

import pytest
import torch

from compress.device import resolve_device, resolve_precision
from compress.errors import DeviceError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match="device: auto or cpu"):
        resolve_device("cuda")


def test_auto_takes_what_is_there() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(DeviceError, match="bfloat16, float32 or auto"):
        resolve_precision("float16", torch.device("cpu"))


def test_auto_precision_is_a_precision_the_cpu_has() -> None:
    native = torch.cpu._is_avx512_bf16_supported()
    assert resolve_precision("auto", torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)


FAULTS_OF_A_SECOND_BLOCK = """
import resource, sys
from compress.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(100_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS_OF_A_SECOND_BLOCK, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("kept") < 100 < faults("handed back")
