"""Looking through a torch file before torch reads it: what its pickles would do, and whether it has what they claim.

Formats: the zip archives that torch.save writes since version 1.6, and the row of pickles of older versions.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from pathlib import Path, PurePosixPath

from compress.models.pickle_machine import PickleMachine, UnsafePickleError

ZIP_START = b"PK\x03\x04"
END_RECORD = struct.Struct("<4s4H2LH")
"""The last bytes of a zip archive without a comment."""
END_LOCATOR = struct.Struct("<4sLQL")
END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
IN_64_BIT_RECORD = 0xFFFFFFFF
OLD_START = (0x1950A86A20F9469CFC6C, 1001)
"""Magic number and protocol of files before version 1.6."""


def check_torch_file(path: Path, *, ignored: frozenset[str]) -> None:
    """Refuse a file that torch's weights_only unpickler should not see; `ignored` are names it may call freely.

    Raises:
        UnsafePickleError: it asks for other objects, or for more memory or time than its size allows.
        ValueError, EOFError, OSError, RuntimeError, struct.error, zipfile.BadZipFile: it is damaged.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_START)) == ZIP_START
        if not is_archive:
            # A file would make room for as many bytes as an instruction claims to be followed by; a map would not.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check_old_file(content, ignored)
    if is_archive:
        _check_archive(path, ignored)


def _check_archive(path: Path, ignored: frozenset[str]) -> None:
    machine = PickleMachine(ignored)
    with zipfile.ZipFile(path) as archive:
        records = _records(path, archive)
        top = next(iter(records)).parts[0]
        pickled = records.get(PurePosixPath(top, "data.pkl"))
        if pickled is None:
            raise ValueError("it has no data.pkl")
        machine.run(io.BytesIO(archive.read(pickled)))
    for storage in machine.storages.values():
        record = records.get(PurePosixPath(top, "data", storage.key))
        if record is None or record.file_size != storage.num_bytes:
            raise UnsafePickleError(f"storage {storage.key!r} claims {storage.num_bytes} bytes that it does not have")


def _records(path: Path, archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The members, of an archive that torch cannot understand in another way than zipfile does."""
    members = archive.infolist()
    if archive.start_dir != _start_of_listing(path):
        raise UnsafePickleError("other bytes stand before or behind its zip archive")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafePickleError("its zip archive is compressed, which torch never does")
    records = {PurePosixPath(member.filename): member for member in members}
    if len({str(name).lower() for name in records}) != len(members):
        raise UnsafePickleError("its zip archive has several members of one name")
    if len({name.parts[:1] for name in records}) != 1 or () in {name.parts for name in records}:
        raise UnsafePickleError("its zip archive has more than one top folder")
    return records


def _start_of_listing(path: Path) -> int:
    """Where the last bytes of a zip archive say that the list of its members begins."""
    with path.open("rb") as file:
        file.seek(-END_RECORD.size, io.SEEK_END)
        signature, *_, start, comment = END_RECORD.unpack(file.read())
        if signature != b"PK\x05\x06" or comment:
            raise UnsafePickleError("other bytes stand behind its zip archive")
        if start != IN_64_BIT_RECORD:
            return start
        file.seek(-END_RECORD.size - END_LOCATOR.size, io.SEEK_END)
        locator = END_LOCATOR.unpack(file.read(END_LOCATOR.size))
        file.seek(locator[2])
        record = END_RECORD_64.unpack(file.read(END_RECORD_64.size))
    if locator[0] != b"PK\x06\x07" or record[0] != b"PK\x06\x06":
        raise ValueError("its zip archive is damaged")
    return record[-1]


def _check_old_file(file: mmap.mmap, ignored: frozenset[str]) -> None:
    magic, protocol = (PickleMachine(ignored).run(file) for _ in range(2))
    if (magic, protocol) != OLD_START:
        raise ValueError("it does not begin like a torch file")
    PickleMachine(ignored).run(file)  # what kind of machine wrote it
    machine = PickleMachine(ignored)
    machine.run(file)
    if sum(storage.num_bytes for storage in machine.storages.values()) > len(file):
        raise UnsafePickleError("its storages claim more bytes than it has")
    PickleMachine(ignored).run(file)  # the order of the storages
