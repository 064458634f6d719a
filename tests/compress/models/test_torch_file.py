"""A torch file is refused before torch reads it where reading it would cost more than it holds."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.errors import ModelError
from compress.models.checkpoint import read_checkpoint
from compress.models.torch_file import check_torch_file

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
NAME = b"X\x01\x00\x00\x00w"


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def tensor(*, elements: int, offset: int = 0, size: int = 4, stride: int = 1) -> bytes:
    """Instructions for a tensor in a storage that claims `elements` numbers."""
    storage = STORAGE % number(elements)
    shape = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85"
    return REBUILD + storage + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def call(module: str, name: str, argument: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + argument + b"\x85R"


def doubled(depth: int) -> bytes:
    """Two to the power of `depth` empty tuples in a few bytes."""
    return b")" + b"q\x00h\x00\x86" * depth


def pickled(value: bytes) -> bytes:
    return b"\x80\x02}" + NAME + value + b"s."


def archive(
    path: Path, content: bytes, *, data: bytes = bytes(16), compression: int = zipfile.ZIP_STORED, top: str = "archive"
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{top}/data.pkl", content)
        file.writestr(f"{top}/byteorder", "little")
        file.writestr(f"{top}/data/0", data)
        file.writestr(f"{top}/version", "3\n")
    return path


def old_file(path: Path, content: bytes, *, num_elements: int = 4) -> Path:
    start = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    keys = pickle.dumps(["0"], protocol=2)
    content = content.replace(b"tQ", b"NtQ")  # these name the part of a storage that a view shows: none
    path.write_bytes(start + content + keys + struct.pack("<q", num_elements) + bytes(16))
    return path


FEW_INSTRUCTIONS = 1000
HOSTILE = {
    "100 GB of zeros": (call("builtins", "bytearray", number(10**11)), r"objects .*\(builtins\.bytearray\)"),
    "an empty storage of 1 TB": (call("torch.storage", "UntypedStorage", number(10**12)), r"objects .*UntypedStorage"),
    "a tensor of 4 TB": (call("torch", "FloatTensor", number(10**12)), r"objects .*torch\.FloatTensor"),
    "a storage larger than the file": (tensor(elements=10**12), "claims 4000000000000 bytes|claim more bytes"),
    "elements behind the storage": (tensor(elements=4, size=10**12), r"_rebuild_tensor_v2 in a way"),
    "elements before the storage": (tensor(elements=4, offset=-4), r"_rebuild_tensor_v2 in a way"),
    "steps out of the storage": (tensor(elements=4, stride=10**6), r"_rebuild_tensor_v2 in a way"),
    "a key that takes for ever to hash": (b"}" + doubled(60) + b"Ns", "neither text nor number"),
    "a set that takes for ever to build": (
        b"cbuiltins\nset\n(]" + doubled(60) + b"atR",
        r"builtins\.set in a way",
    ),
    "an ordered mapping with such a key": (
        b"ccollections\nOrderedDict\n(]" + doubled(60) + b"N\x86atR",
        r"OrderedDict in a way",
    ),
    "a call of what a call gave": (doubled(60) + b")R", "something that is no function"),
    "a state for a tensor": (tensor(elements=4) + b"}b", "changes something"),
    "instructions of protocol 4": (b"\x8f", "instruction EMPTY_SET"),
    "an instruction that plain weights do not need": (b"N0", "instruction POP"),
    "no end of instructions": (b"]" + b"Na" * FEW_INSTRUCTIONS, f"more than {FEW_INSTRUCTIONS} instructions"),
}


@pytest.mark.parametrize("make", [archive, old_file])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_instructions_are_refused_without_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, make: Callable[[Path, bytes], Path]
) -> None:
    monkeypatch.setattr("compress.models.pickle_machine.MAX_INSTRUCTIONS", FEW_INSTRUCTIONS)
    value, refusal = HOSTILE[kind]
    path = make(tmp_path / "hostile.pth", pickled(value))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=refusal):
        read_checkpoint(path, network_bytes=1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("instruction", [b"\x8e", b"\x8d", b"\x96"], ids=["BINBYTES8", "BINUNICODE8", "BYTEARRAY8"])
@pytest.mark.parametrize("make", [archive, old_file])
def test_a_length_beyond_the_file_takes_no_memory(
    tmp_path: Path, make: Callable[[Path, bytes], Path], instruction: bytes
) -> None:
    claimed = 2**40
    path = make(tmp_path / "hostile.pth", b"\x80\x04" + instruction + claimed.to_bytes(8, "little") + b"abc.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=rf"expected {claimed} bytes in a \w+, but only \d+ remain"):
        read_checkpoint(path, network_bytes=1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("make", [archive, old_file])
def test_the_same_instructions_are_read_when_they_are_honest(
    tmp_path: Path, make: Callable[[Path, bytes], Path]
) -> None:
    path = make(tmp_path / "honest.pth", pickled(tensor(elements=4)))
    assert read_checkpoint(path, network_bytes=1000).tensors["w"].tolist() == [0.0] * 4


def test_what_schedulers_and_old_pythons_write_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "training.pth"
    state = {
        "state_dict": OrderedDict(weight=torch.ones(2)),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "scheduler": {"milestones": Counter([30, 60]), "gamma": 0.1},
        "splits": {1, 2},
        "size": torch.Size([3, 4]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
    }
    for is_zip in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=is_zip)
        assert read_checkpoint(path, network_bytes=1000).tensors["weight"].tolist() == [1.0, 1.0]


# Two readers of one archive must not see two files.


def test_bytes_around_an_archive_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "weights.pth", pickled(tensor(elements=4)))
    whole = path.read_bytes()
    path.write_bytes(whole + b"behind")
    with pytest.raises(ModelError, match="stand behind its zip archive"):
        read_checkpoint(path, network_bytes=1000)
    path.write_bytes(b"PK\x03\x04 before" + whole)
    with pytest.raises(ModelError, match="other bytes stand before or behind"):
        read_checkpoint(path, network_bytes=1000)


def test_second_member_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.pth"
    for second in ("archive/data.pkl", "archive/DATA.pkl"):
        archive(path, pickled(tensor(elements=4)))
        with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile notices the first one
            file.writestr(second, pickled(call("builtins", "bytearray", number(10**11))))
        with pytest.raises(ModelError, match="several members of one name"):
            read_checkpoint(path, network_bytes=1000)


def test_second_top_folder_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "two.pth", pickled(tensor(elements=4)))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", pickled(call("builtins", "bytearray", number(10**11))))
    with pytest.raises(ModelError, match="more than one top folder"):
        read_checkpoint(path, network_bytes=1000)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    content = pickled(tensor(elements=10**6))
    path = archive(tmp_path / "bomb.pth", content, data=bytes(4 * 10**6), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    with pytest.raises(ModelError, match="compressed, which torch never does"):
        read_checkpoint(path, network_bytes=1000)


def test_archive_with_a_64_bit_listing_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    path = tmp_path / "torch.pth"
    path.write_bytes(buffer.getvalue())
    check_torch_file(path, ignored=frozenset())
    assert read_checkpoint(path, network_bytes=1000).tensors["w"].tolist() == [1.0] * 3
