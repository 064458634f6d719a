"""Commands verify and sign: whether a deploy folder is as it was written, and who wrote it."""

from __future__ import annotations

from pathlib import Path

from compress.signing import sign_folder, signature_path, verify_signature
from compress.verify import summary, verify_deploy


def run(folder: Path, *, manifest_sha256: str | None, public_key: Path | None, signature: Path | None) -> str:
    """Check a deploy folder, and with a key its signature; a line for people.

    Raises:
        ArtifactError: anything is not as it was written or signed, or the model answers differently here.
        CompressError: a signature is to be checked, and model-signing is not installed.
    """
    if public_key is None:
        return summary(verify_deploy(folder, manifest_sha256=manifest_sha256))
    signature = signature or signature_path(folder)
    verify_signature(folder, signature, public_key=public_key)
    return f"{summary(verify_deploy(folder, manifest_sha256=manifest_sha256))}; signed by the holder of {public_key}"


def sign(folder: Path, *, key: Path, password_file: Path | None, signature: Path | None) -> Path:
    """Sign a deploy folder that passes the checks; where the signature lies.

    Raises:
        ArtifactError: the folder is not as it was written, the key cannot be used, or the signature not be written.
        CompressError: model-signing is not installed.
    """
    verify_deploy(folder)
    signature = signature or signature_path(folder)
    password = None if password_file is None else password_file.read_text(encoding="utf-8").rstrip("\n")
    sign_folder(folder, signature, private_key=key, password=password)
    return signature
