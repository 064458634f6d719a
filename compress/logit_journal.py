"""A store on its way: the rows file, and journals of the chunks that are done, so that a killed writer goes on.

    logits.npy              as in a finished store; chunks that no journal names hold anything
    asked.json              what is being written; a partial store of anything else is discarded by name
    journal-<r>-of-<n>      one line of JSON for each chunk that process r of n has finished

A chunk is on disk before its line is. Every line is checked against the rows before it is believed. A process holds
the lock of its journal while it writes, so nothing is discarded or finished under it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, final

from pydantic import ValidationError

from compress.data.threads import map_in_threads
from compress.errors import ArtifactError
from compress.files import write_json
from compress.logit_rows import ByteRows, probability_error
from compress.logit_store import LOGITS, TeacherLogitsManifest, hash_of_chunk, offset_of
from compress.settings import NonNegativeFloat, NonNegativeInt, Settings, Sha256
from compress.types import LogitArray

ASKED = "asked.json"
JOURNALS = "journal-*"
RESULTS = {"pass_error", "max_abs_error", "max_probability_error", "chunk_sha256", "sha256"}
"""Fields of a manifest that are known only in the end."""


class Shard(NamedTuple):
    """One of the processes that write a store together."""

    rank: int = 0
    num_ranks: int = 1

    def chunks(self, manifest: TeacherLogitsManifest) -> range:
        """The chunks that are this process's to write; every n-th, so that a resumed writing is shared evenly."""
        return range(self.rank, manifest.num_chunks, self.num_ranks)


class ChunkRecord(Settings):
    """A finished chunk."""

    chunk: NonNegativeInt
    sha256: Sha256
    max_abs_error: NonNegativeFloat
    max_probability_error: NonNegativeFloat


class Begun(NamedTuple):
    """What a writer finds when it begins."""

    num_rows_done: int
    discarded: str | None
    """Why the partial store that was there is gone; None: there was none, or it goes on."""


def begin(work: Path, manifest: TeacherLogitsManifest, *, code: str) -> Begun:
    """Make the partial store in `work`, or keep the one that is there if it is exactly this one.

    `code` is a hash of the code that computes the answers. Of several processes one begins, before the others write.

    Raises:
        ArtifactError: another process is writing there.
    """
    check_nobody_writes(work)
    asked = {"code": code, **manifest.model_dump(mode="json", exclude=RESULTS)}
    discarded = _difference(work, asked)
    if discarded is not None:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / ASKED).is_file():
        _make_rows(work / LOGITS, manifest)
        write_json(work / ASKED, asked)
    num_done = sum(len(manifest.rows_of(chunk)) for chunk in finished_chunks(work, manifest))
    return Begun(num_done, discarded)


def finished_chunks(work: Path, manifest: TeacherLogitsManifest) -> dict[int, ChunkRecord]:
    """Chunks that the journals of all processes name and that the rows file holds, by number."""
    records: dict[int, ChunkRecord] = {}
    for journal in sorted(work.glob(JOURNALS)):
        for line in journal.read_bytes().splitlines():
            try:
                record = ChunkRecord.model_validate_json(line)
            except ValidationError:
                continue  # the writer was killed within the line
            if record.chunk < manifest.num_chunks:
                records[record.chunk] = record
    found = map_in_threads(lambda chunk: hash_of_chunk(work / LOGITS, manifest, chunk), records)
    return {
        chunk: record for (chunk, record), digest in zip(records.items(), found, strict=True) if digest == record.sha256
    }


@contextmanager
def opened_journal(work: Path, shard: Shard) -> Generator[IO[bytes]]:
    """A process's journal, locked, to append to.

    Raises:
        ArtifactError: nobody has begun, or another process writes the same chunks.
    """
    if not (work / ASKED).is_file():
        raise ArtifactError(f"no store is being written in {work}; one process has to begin before the others write")
    path = work / f"journal-{shard.rank}-of-{shard.num_ranks}"
    with path.open("ab") as journal:
        _lock(journal, work)
        if journal.tell():  # end the line that a killed writer began; an empty one is harmless
            journal.write(b"\n")
        yield journal


@final
class ChunkWriter:
    """Puts batches into the rows file and notes each chunk whose last batch has come."""

    def __init__(self, file: IO[bytes], journal: IO[bytes], manifest: TeacherLogitsManifest) -> None:
        self._file = file
        self._journal = journal
        self._manifest = manifest
        self._format = manifest.row_format
        self._hash = hashlib.sha256()
        self._max_abs_error = self._max_probability_error = 0.0

    def write(self, rows: range, logits: LogitArray) -> None:
        """The next batch; batches of a chunk come in order."""
        chunk = rows.start // self._manifest.rows_per_chunk
        of_chunk = self._manifest.rows_of(chunk)
        if rows.start == of_chunk.start:
            self._file.seek(offset_of(self._manifest, chunk))
            self._hash, self._max_abs_error, self._max_probability_error = hashlib.sha256(), 0.0, 0.0
        stored = self._format.encode(logits)
        self._hash.update(stored.data)
        self._max_abs_error = max(self._max_abs_error, float(self._format.errors(stored, logits).max()))
        self._max_probability_error = max(
            self._max_probability_error, probability_error(self._format.decode(stored), logits)
        )
        self._write(stored)
        if rows.stop == of_chunk.stop:
            self._finish(chunk)

    def _write(self, stored: ByteRows) -> None:
        try:
            self._file.write(stored.data)
            self._file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ArtifactError(
                "the disk became full while the teacher's logits were written; make room and run the teacher_logits "
                "stage again: it goes on after the last whole chunk"
            ) from error

    def _finish(self, chunk: int) -> None:
        os.fsync(self._file.fileno())
        record = ChunkRecord(
            chunk=chunk,
            sha256=self._hash.hexdigest(),
            max_abs_error=self._max_abs_error,
            max_probability_error=self._max_probability_error,
        )
        self._journal.write(f"{record.model_dump_json()}\n".encode())
        self._journal.flush()
        os.fsync(self._journal.fileno())


def check_nobody_writes(work: Path) -> None:
    """Raise ArtifactError if a process holds a journal."""
    for path in work.glob(JOURNALS):
        with path.open("rb") as journal:
            _lock(journal, work)


def _lock(journal: IO[bytes], work: Path) -> None:
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArtifactError(
            f"another process is already writing teacher logits in {work}; wait for it, or end it and run again: "
            "what it has written is used"
        ) from None


def _make_rows(path: Path, manifest: TeacherLogitsManifest) -> None:
    with path.open("wb") as file:
        file.write(manifest.header)
        file.truncate(manifest.size_bytes)  # a hole, which chunks fill in any order


def _difference(work: Path, asked: dict[str, Any]) -> str | None:
    """Words for what a partial store holds instead of what is asked; None if there is none, or the same."""
    try:
        found = json.loads((work / ASKED).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{ASKED} is damaged"
    if not isinstance(found, dict):
        return f"{ASKED} is damaged"
    before, now = _flat(found), _flat(asked)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f"it has another {', '.join(other)}" if other else None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in _flat(value).items()}
        else:
            flat[key] = value
    return flat
