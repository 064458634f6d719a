"""Files under a folder or inside a zip archive, listed in a fixed order and read one at a time.

Members of an archive are read into memory and never written to disk, so a name such as `../../x.png` leads nowhere.
"""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from compress.data.decoding import UnreadableImageError
from compress.errors import DataError

MAX_FILE_BYTES = 1 << 29
"""Larger files are not read: no picture within the pixel bound needs half a gigabyte, an archive bomb claims it."""

# zipfile has no error of its own for all it meets: an encrypted member or an unknown compression is a RuntimeError.
_MEMBER_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class FileTree:
    """A listing without content."""

    files: tuple[str, ...]
    """Paths relative to the root, with slashes, sorted; hidden ones left out."""
    folders: tuple[str, ...]
    """The same for folders, empty ones included."""
    num_hidden_files: int
    """Files left out: a part of their path starts with a dot, is __MACOSX, or leads out of an archive."""
    read: Callable[[str], bytes]
    """Content of one of the files. Raises UnreadableImageError."""


@contextmanager
def open_file_tree(path: Path) -> Generator[FileTree]:
    """List a folder, or a zip archive, which stays open inside the context.

    Raises:
        DataError: nothing is there, it is a file of another kind, or it can not be read.
    """
    path = path.expanduser()
    if path.is_dir():
        yield _list_folder(path)
    else:
        with _open_archive(path) as archive:
            yield _list_archive(archive)


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"no folder or zip archive at {path} (looked from {Path.cwd()}); correct the path") from error
    # A damaged list of members surfaces as whatever its parser trips over.
    except (zipfile.BadZipFile, ValueError, RuntimeError, struct.error) as error:
        raise DataError(f"{path} is neither a folder nor a whole zip archive; unpack it or fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} can not be read: {error.strerror}; correct the path or its rights") from error
    # One stretch of bytes listed a thousand times unpacks to a thousand times what it should.
    if sum(member.compress_size for member in archive.infolist()) > path.stat().st_size:
        archive.close()
        raise DataError(f"{path} lists more bytes than it has: its members overlap; pack it again")
    return archive


@dataclass
class _Found:
    files: list[str] = field(default_factory=list[str])
    folders: list[str] = field(default_factory=list[str])


def _list_folder(root: Path) -> FileTree:
    found = _Found()
    try:
        _walk(root, PurePosixPath(), above=frozenset(), found=found)
    except OSError as error:
        raise DataError(f"{error.filename} can not be listed: {error.strerror}; correct its rights") from error
    originals = {_printable(name): name for name in found.files}

    def read(name: str) -> bytes:
        try:
            path = root / originals[name]
            if path.exists() and not path.is_file():  # opening a pipe waits for ever, reading a device never ends
                raise UnreadableImageError("is no file")
            with path.open("rb") as file:
                _check_size(os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise UnreadableImageError(f"can not be read: {error.strerror}") from error

    return _tree(originals, map(_printable, found.folders), read=read)


def _walk(folder: Path, name: PurePosixPath, *, above: frozenset[str], found: _Found) -> None:
    # Links are followed, as data sets are often made of them, but not back into a folder that contains them.
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found.folders.append(str(name / entry.name))
                _walk(Path(entry), name / entry.name, above=above | {real}, found=found)
            else:
                found.files.append(str(name / entry.name))


def _list_archive(archive: zipfile.ZipFile) -> FileTree:
    members: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in archive.infolist():
        name = _printable(member.filename.replace("\\", "/"))  # some Windows tools write backslashes
        if name.endswith("/"):
            folders.add(name.rstrip("/"))
        else:
            members[name] = member
        folders.update(map(str, PurePosixPath(name).parents))

    def read(name: str) -> bytes:
        try:
            _check_size(members[name].file_size)
            return archive.read(members[name])
        except _MEMBER_ERRORS as error:
            raise UnreadableImageError(f"can not be read from the archive: {error}") from error

    return _tree(members, folders, read=read)


def _tree(files: Iterable[str], folders: Iterable[str], *, read: Callable[[str], bytes]) -> FileTree:
    everything = list(files)
    visible = sorted(name for name in everything if _is_visible(name))
    shown = sorted(name for name in folders if name != "." and _is_visible(name))
    return FileTree(tuple(visible), tuple(shown), len(everything) - len(visible), read)


def _is_visible(name: str) -> bool:
    # An empty part is a leading slash; ".." starts with a dot.
    return all(part not in ("", "__MACOSX") and not part.startswith(".") for part in name.split("/"))


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise UnreadableImageError(f"{num_bytes} bytes are more than {MAX_FILE_BYTES}, the most that is read")


def _printable(name: str) -> str:
    # Names that are no UTF-8 arrive with surrogates, which no text file can hold.
    return name.encode("utf-8", "backslashreplace").decode()
