"""Command serve: the deployed student behind HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from compress.errors import CompressError, ParamsError

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def run(settings: dict[str, Any], changes: Sequence[str]) -> None:
    """Serve until told to stop; `changes` are `name=value` with dots into `limits`.

    Raises:
        ParamsError: a setting is unknown or out of range.
    """
    try:
        from compress.serve import ServeSettings, serve
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise CompressError(f"{error.name} is not installed; run: pip install 'compress[serve]'") from error
    for change in changes:
        _apply_(settings, change)
    try:
        checked = ServeSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ParamsError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    serve(checked)


def _apply_(settings: dict[str, Any], change: str) -> None:
    name, separator, value = change.partition("=")
    if not separator:
        raise ParamsError(f"--set {change}: write it as name=value")
    *path, last = name.split(".")
    for key in path:
        settings = settings.setdefault(key, {})
    settings[last] = value
