"""Fetching a published file: over TLS, to the last byte the one that was published, or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple, final
from urllib.parse import urlsplit

from compress.errors import DataError

SCHEMES = frozenset({"https"})
TIMEOUT_SECONDS = 60
PIECE = 1 << 20


class PublishedFile(NamedTuple):
    """A file that everybody can fetch, and what is known of it."""

    address: str
    sha256: str
    size_bytes: int

    @property
    def name(self) -> str:
        """Its name without the address."""
        return self.address.rpartition("/")[2]


def fetch(published: PublishedFile, path: Path) -> None:
    """Download a file to `path`; what was there is replaced by a whole file only.

    Raises:
        DataError: the server cannot be reached, leads away from TLS, or sends something else than was published.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        _require_tls(published.address)
        with _opener().open(published.address, timeout=TIMEOUT_SECONDS) as answer, partial.open("wb") as file:
            found = _copy(answer, file, published)
        if found != published.sha256:
            raise DataError(f"{published.address} sent another file: SHA-256 {found}, not {published.sha256}")
        partial.replace(path)
    except (OSError, HTTPException) as error:  # an URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{published.address}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_published(path: Path, published: PublishedFile) -> None:
    """Raise DataError if a file is not the published one."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != published.size_bytes:
            raise DataError(f"{path} does not have the {published.size_bytes} bytes of the published file")
        if hashlib.file_digest(file, "sha256").hexdigest() != published.sha256:
            raise DataError(f"{path} is not the published file: its SHA-256 is not {published.sha256}")


def _copy(answer: io.BufferedIOBase, file: io.BufferedIOBase, published: PublishedFile) -> str:
    digest, size = hashlib.sha256(), 0
    while piece := answer.read(PIECE):
        size += len(piece)
        if size > published.size_bytes:
            raise DataError(f"{published.address} sends more than the {published.size_bytes} bytes of the file")
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


def _require_tls(address: str) -> None:
    if urlsplit(address).scheme not in SCHEMES:
        raise DataError(f"{address} is not fetched: only {', '.join(sorted(SCHEMES))} is")


@final
class _TlsRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed, but not to where somebody on the way could change the file."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The next request."""
        _require_tls(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers that build_opener adds for files, FTP and data in addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _TlsRedirects(),
    ):
        opener.add_handler(handler)
    return opener
