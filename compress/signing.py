"""Signatures of deploy folders in the OpenSSF model signing format: who wrote a folder, not only whether it is whole.

The signature is a Sigstore bundle over the SHA-256 of every file of the folder, made with a local elliptic curve key,
without any network. It lies beside the folder: inside, DVC would take it for a change of the stage's output. Anybody
with the `model_signing` program can check it too: `model_signing verify key FOLDER --signature FOLDER.sig --public_key
KEY.pub`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compress.errors import ArtifactError, CompressError


def signature_path(folder: Path) -> Path:
    """Where a folder's signature lies unless the caller says otherwise: `deploy.sig` beside `deploy/`."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}.sig")


def sign_folder(folder: Path, signature: Path, *, private_key: Path, password: str | None = None) -> None:
    """Sign every file of a folder with an elliptic curve key (PEM: P-256, P-384 or P-521).

    Raises:
        ArtifactError: the key cannot be used, or the signature cannot be written.
        CompressError: model-signing is not installed.
    """
    if signature.absolute().is_relative_to(folder.absolute()):
        raise ArtifactError(f"{signature} lies inside {folder}, where it would be a file too many; put it beside it")
    _require_file(private_key, "the private key")
    config = _library("signing").Config().set_hashing_config(_hashing())
    try:
        # Annotated as text in model-signing 1.1, and handed on to a function that takes bytes.
        config.use_elliptic_key_signer(
            private_key=private_key, password=None if password is None else password.encode()
        )
    except (ValueError, TypeError, AttributeError) as error:  # the last one from a key of another kind, such as RSA
        raise ArtifactError(
            f"{private_key} cannot sign ({_reason(error)}); give an unencrypted elliptic curve key in PEM, or its "
            "password: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"
        ) from error
    try:
        config.sign(folder, signature)
    except OSError as error:
        raise ArtifactError(f"cannot write {signature}: {error.strerror}; choose a writable place") from error


def verify_signature(folder: Path, signature: Path, *, public_key: Path) -> None:
    """Check that the holder of a key signed exactly the files that lie in a folder.

    Raises:
        ArtifactError: it is not so.
        CompressError: model-signing is not installed.
    """
    _require_file(signature, "the signature")
    _require_file(public_key, "the public key")
    config = _library("verifying").Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{public_key} is no elliptic curve public key in PEM ({_reason(error)})") from error
    try:
        config.verify(folder, signature)
    except Exception as error:  # damaged bundles surface as whatever its parsers and cryptography raise
        raise ArtifactError(
            f"{signature} is not the signature of {folder} by this key ({_reason(error)}); do not use the folder"
        ) from error


def _hashing() -> Any:
    # Git's files count like all others, and links that DVC or a container platform makes count as what they lead to.
    config = _library("hashing").Config()
    return config.set_ignored_paths(paths=[], ignore_git_paths=False).set_allow_symlinks(True)


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{name}")
    except ModuleNotFoundError as error:
        raise CompressError(f"{error.name} is not installed; run: pip install 'compress[sign]'") from error


def _require_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{what} {path} is missing; give the path of the file")


def _reason(error: Exception) -> str:
    # The digests of a changed file say nothing that its name does not.
    text = " ".join(str(error).split()).replace("\\'", "'")
    text = re.sub(r"[\[\"']*(Hash mismatch for '[^']+'): Expected.*", r"\1", text)
    return text[:200] or type(error).__name__
