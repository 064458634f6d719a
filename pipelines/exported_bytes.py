"""Whether an exported file is still the one that was exported and measured."""

from __future__ import annotations

from pathlib import Path

from compress.errors import ArtifactError
from compress.fingerprint import file_sha256


def require_same_bytes(path: Path, sha256: str) -> None:
    """Refuse a file that is not the one that was measured.

    Raises:
        ArtifactError: it is missing or was changed.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; run the export stage") from error
    if found != sha256:
        raise ArtifactError(
            f"{path} was changed after it was exported: its SHA-256 begins with {found[:12]}, that of the exported "
            f"file with {sha256[:12]}; run the stages export and evaluate again"
        )
