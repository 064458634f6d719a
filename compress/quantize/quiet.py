"""What onnxruntime.quantization says while it works, kept to itself."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def root_logger_untouched() -> Generator[None]:
    """Drop records that a library logs with the root logger, and keep it from configuring that logger by doing so."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(_refuse)
    try:
        yield
    finally:
        root.removeFilter(_refuse)
        root.removeHandler(handler)


def _refuse(record: logging.LogRecord) -> bool:
    return False
