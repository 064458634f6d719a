"""The file that holds a teacher's answers, and the manifest that says whose they are and how exact.

    logits.npy      one row for each view: view slot v of image n is row v * N + n. numpy's own format, so that
                    numpy.load shows float stores as (V, N, C) and others as (V, N) records.
    manifest.json   everything below; its sha256 covers all its other fields, and so stands for the whole store

Rows are written, hashed and verified in chunks. Opening a store hashes all of it, in threads: 1.8 GB/s on each core
was measured, so that a store of 1.6 GB costs less than a second, and a record of size and time of change would not
notice a disk that lost a bit.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from compress.data.threads import map_in_threads
from compress.data.view_schedule import ViewSettings
from compress.errors import ArtifactError
from compress.files import write_json
from compress.fingerprint import fingerprint
from compress.logit_rows import RowFormat, StoredType, row_format
from compress.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings, Sha256
from compress.teacher_pass import PassBackend, PassPrecision, ResolvedPrecision

FORMAT_VERSION = 3
MANIFEST, LOGITS = "manifest.json", "logits.npy"
READ_SIZE = 1 << 18

Count = Annotated[int, Field(ge=0, lt=2**28)]
"""More than there are images or classes, and a number that numpy takes as a size of rows."""


class Computation(Settings):
    """How the answers were computed; another way gives other last bits."""

    precision: ResolvedPrecision
    device: str
    """`cpu`, or the name of the GPU."""
    threads: PositiveInt
    """Of the CPU."""
    batch_size: PositiveInt
    folded_batch_norms: NonNegativeInt
    """Batch normalisations that were made part of a convolution before torch was asked."""
    runtime: str
    """What computed, with its version."""
    torch: str
    """Its version; it makes the views' pixels into floats, whatever computes."""


class TeacherLogitsManifest(Settings):
    """Whose answers a store holds, and how exactly."""

    format_version: Literal[3] = FORMAT_VERSION
    enabled: bool
    teacher_sha256: str
    data_fingerprint: str
    views: ViewSettings
    dtype: StoredType
    top_k: PositiveInt | None = None
    """Logits kept of each view; the other classes share their probability evenly. None: all are kept."""
    shape: tuple[Count, Count, Count]
    """Views, images, classes; zeros when the store is switched off."""
    precision: PassPrecision = "float32"
    """What was asked for; a teacher that runs while students train takes it as well."""
    backend: PassBackend = "torch"
    """What was asked for; a teacher that runs while students train takes it as well."""
    max_precision_error: PositiveFloat = 0.1
    """What was accepted of it, where it was auto."""
    rows_per_chunk: PositiveInt = 8192
    """Rows that are hashed together."""
    computation: Computation | None = None
    """None when the store is switched off."""
    pass_error: NonNegativeFloat = 0.0
    """Largest difference of a logit as computed from plain float32, on samples."""
    num_pass_samples: NonNegativeInt = 0
    """Views among these samples."""
    max_abs_error: NonNegativeFloat = 0.0
    """Largest difference of a stored logit from the computed one, over all views; with top_k over the kept classes."""
    max_probability_error: NonNegativeFloat = 0.0
    """The same of class probabilities at temperature 1, over all classes."""
    chunk_sha256: tuple[Sha256, ...] = ()
    """Of each chunk's rows."""
    sha256: str = ""
    """Of all other fields: the identity of the store. Empty while it is being written."""

    @property
    def num_rows(self) -> int:
        """Views of all images."""
        return self.shape[0] * self.shape[1]

    @property
    def num_chunks(self) -> int:
        """Chunks of the file; the last one may be smaller."""
        return -(-self.num_rows // self.rows_per_chunk)

    @property
    def row_format(self) -> RowFormat:
        """How a view is stored."""
        return row_format(self.dtype, self.top_k, self.shape[2])

    @property
    def header(self) -> bytes:
        """First bytes of the file."""
        dtype, shape = self.row_format.dtype, self.shape[:2]
        file = io.BytesIO()
        fields: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(dtype.base),
            "fortran_order": False,
            "shape": (*shape, *dtype.shape),
        }
        np.lib.format.write_array_header_1_0(file, fields)
        return file.getvalue()

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + self.num_rows * self.row_format.row_bytes

    def rows_of(self, chunk: int) -> range:
        """Rows of a chunk."""
        assert 0 <= chunk < self.num_chunks
        start = chunk * self.rows_per_chunk
        return range(start, min(start + self.rows_per_chunk, self.num_rows))

    def compute_sha256(self) -> str:
        """What `sha256` must be once the store is written."""
        return fingerprint(self.model_dump(mode="json", exclude={"sha256"}))

    def expecting(
        self, *, data_fingerprint: str, views: ViewSettings, teacher_sha256: str | None = None
    ) -> TeacherLogitsManifest:
        """This manifest as it would be for these data, views and teacher; without a teacher's hash, for its own."""
        return self.model_copy(
            update={
                "data_fingerprint": data_fingerprint,
                "views": views,
                "teacher_sha256": teacher_sha256 or self.teacher_sha256,
            }
        )


def write_manifest(folder: Path, manifest: TeacherLogitsManifest) -> TeacherLogitsManifest:
    """Write a manifest with its own hash, and return it."""
    finished = manifest.model_copy(update={"sha256": manifest.compute_sha256()})
    write_json(folder / MANIFEST, finished.model_dump(mode="json"))
    return finished


def read_manifest(folder: Path) -> TeacherLogitsManifest:
    """The manifest of a store.

    Raises:
        ArtifactError: it is missing, damaged, changed or of another version.
    """
    path = folder / MANIFEST
    cure = "run the teacher_logits stage"
    try:
        manifest = TeacherLogitsManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"no teacher logits in {folder}: {path.name} is missing; {cure}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "its JSON"
        raise ArtifactError(
            f"{path} is damaged or of another version ({place}: {first['msg']}); {cure} again"
        ) from error
    keeps_too_many = manifest.enabled and manifest.top_k is not None and manifest.top_k >= manifest.shape[2]
    if len(manifest.chunk_sha256) != manifest.num_chunks or keeps_too_many:
        raise ArtifactError(f"{path} is damaged: its numbers do not fit together; {cure} again")
    if manifest.compute_sha256() != manifest.sha256:
        raise ArtifactError(f"{path} was changed after it was written: its SHA-256 does not fit; {cure} again")
    return manifest


def check_rows(path: Path, manifest: TeacherLogitsManifest) -> None:
    """Compare a file with the header, the size and the hash of every chunk that its manifest states.

    Raises:
        ArtifactError: it is missing, cut off, reordered or changed.
    """
    cure = "run the teacher_logits stage again"
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(len(manifest.header))
    except OSError as error:
        raise ArtifactError(f"{path} can not be read ({error.strerror}); {cure}") from error
    if size_bytes != manifest.size_bytes:
        raise ArtifactError(f"{path} has {size_bytes} bytes, {manifest.size_bytes} were written; {cure}")
    if header != manifest.header:
        raise ArtifactError(f"{path} has another header than was written; {cure}")
    found = map_in_threads(lambda chunk: hash_of_chunk(path, manifest, chunk), range(manifest.num_chunks))
    for chunk, (digest, written) in enumerate(zip(found, manifest.chunk_sha256, strict=True)):
        if digest != written:
            rows = manifest.rows_of(chunk)
            first, last = (divmod(row, manifest.shape[1]) for row in (rows[0], rows[-1]))
            raise ArtifactError(
                f"{path} is not the file that was written: chunk {chunk} of {manifest.num_chunks}, view {first[0]} of "
                f"image {first[1]} to view {last[0]} of image {last[1]}, has another SHA-256; {cure}"
            )


def hash_of_chunk(path: Path, manifest: TeacherLogitsManifest, chunk: int) -> str:
    """SHA-256 of a chunk as it stands in a file; of what is there where the file ends early."""
    rows, row_bytes = manifest.rows_of(chunk), manifest.row_format.row_bytes
    digest, num_left = hashlib.sha256(), len(rows) * row_bytes
    with path.open("rb") as file:
        file.seek(offset_of(manifest, chunk))
        while num_left and (piece := file.read(min(num_left, READ_SIZE))):
            digest.update(piece)
            num_left -= len(piece)
    return digest.hexdigest()


def offset_of(manifest: TeacherLogitsManifest, chunk: int) -> int:
    """Where in the file a chunk begins."""
    return len(manifest.header) + manifest.rows_of(chunk).start * manifest.row_format.row_bytes
