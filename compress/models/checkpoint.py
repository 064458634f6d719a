"""Reading weights that somebody else wrote, without running their code or unpacking more than a network can hold.

The instructions of a pickle are first looked through without following them (`torch_file`): only what plain weights
need is let through, and nothing that claims more memory than the file has. Then torch reads it with weights_only. What
training scripts commonly store beside the weights (their arguments, an accuracy as a numpy scalar) is read into inert
stand-ins, by name, and dropped.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, final

import safetensors.torch
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from compress.errors import ModelError
from compress.models.network import FiniteFloat, Statistics
from compress.models.pickle_machine import UnsafePickleError
from compress.models.torch_file import check_torch_file
from compress.settings import PositiveFloat

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "card.json"

PICKLE_SUFFIXES = (".pth", ".pt", ".pth.tar", ".bin")
# Optimiser state, averaged weights and double precision together stay below eight times the network.
SIZE_FACTOR = 8
SIZE_ALLOWANCE_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 10_000_000
"""Of a safetensors file; about 100,000 tensors, each of which costs a thousand bytes of memory however empty it is."""
# Averaged weights first: where a file has both, the averaged ones are those its author evaluated.
NESTED_KEYS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "net",
    "network",
)
IGNORED_GLOBALS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)
# A counter that torch's averaged models keep beside the weights.
AVERAGING_COUNTER = "n_averaged"


class CardFacts(BaseModel):
    """The part of a saved model's card that matters to whoever loads its weights."""

    classes: tuple[str, ...]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    weights_sha256: str


class Checkpoint(NamedTuple):
    """Tensors by name, as they stand in the file, and the statistics they were trained with where these are known."""

    tensors: dict[str, Tensor]
    statistics: Statistics | None


def read_checkpoint(path: Path, *, network_bytes: int) -> Checkpoint:
    """Weights from a .safetensors file, a torch file, or the folder of a model that this project saved.

    Args:
        path: What to read.
        network_bytes: Size of the network they are for; a file that unpacks to far more is refused unread.

    Raises:
        ModelError: nothing there, damaged, too big, no weights inside, or asking for code to be run.
    """
    if path.is_dir():
        return _read_saved_model(path, limit_bytes=_limit(network_bytes))
    if not path.is_file():
        raise ModelError(f"checkpoint {path} does not exist; give the path of a weights file")
    if path.name.endswith(".safetensors"):
        tensors = _parse_safetensors(_bounded_bytes(path, limit_bytes=_limit(network_bytes)), path)
    elif path.name.endswith(PICKLE_SUFFIXES):
        tensors = _read_pickle(path, limit_bytes=_limit(network_bytes))
    else:
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise ModelError(f"checkpoint {path} has an unknown kind; its name must end in one of {known}")
    tensors.pop(AVERAGING_COUNTER, None)
    return Checkpoint(tensors, statistics=None)


def read_card_facts(folder: Path) -> CardFacts:
    """What the card of a saved model says to whoever loads its weights.

    Raises:
        ModelError: no card there, or not one of ours.
    """
    card = folder / CARD_FILE
    try:
        return CardFacts.model_validate_json(card.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(
            f"checkpoint folder {folder} holds no {CARD_FILE}; give a folder that this project saved, or a weights file"
        ) from error
    except (ValidationError, OSError) as error:
        raise ModelError(f"{card} cannot be read as the card of a saved model: {_first_line(error)}") from error


def parse_safetensors(data: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file; the reader checks every offset against the data.

    Raises:
        ValueError: the bytes are no such file, or a damaged one.
    """
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError(f"its header claims more than {MAX_HEADER_BYTES} bytes")
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(_first_line(error)) from error


def _read_saved_model(folder: Path, *, limit_bytes: int) -> Checkpoint:
    facts = read_card_facts(folder)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"checkpoint folder {folder} has a card but no {WEIGHTS_FILE}; save or copy the model again")
    data = _bounded_bytes(weights, limit_bytes=limit_bytes)
    if hashlib.sha256(data).hexdigest() != facts.weights_sha256:
        raise ModelError(
            f"{weights} is not the file its card describes (SHA-256 differs); save or copy the model again"
        )
    return Checkpoint(_parse_safetensors(data, weights), Statistics(mean=facts.mean, std=facts.std))


def _parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return parse_safetensors(data)
    except ValueError as error:
        raise ModelError(
            f"checkpoint {path} is not a whole safetensors file ({error}); download or copy it again"
        ) from error


def _read_pickle(path: Path, *, limit_bytes: int) -> dict[str, Tensor]:
    _check_unpacked_size(path, limit_bytes=limit_bytes)
    _check_instructions(path)
    with torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED_GLOBALS]):
        try:
            with warnings.catch_warnings():
                # Old files make torch warn about their own format, which is not the reader's concern.
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
        # A damaged or hostile pickle can make the unpickler raise anything; whatever it is, the file is unusable.
        except Exception as error:
            raise ModelError(_unreadable(path, error)) from error
    tensors = _find_tensors(content, depth=4)
    if not tensors:
        held = (
            f"its keys are {_few(content)}" if isinstance(content, Mapping) else f"it holds a {type(content).__name__}"
        )
        raise ModelError(f"checkpoint {path} holds no state dict: {held}; save the network's state_dict()")
    return tensors


def _check_unpacked_size(path: Path, *, limit_bytes: int) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        try:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ModelError(f"checkpoint {path} is damaged ({error}); download or copy it again") from error
    _refuse_above(limit_bytes, size, path)


def _bounded_bytes(path: Path, *, limit_bytes: int) -> bytes:
    _refuse_above(limit_bytes, path.stat().st_size, path)
    return path.read_bytes()


def _refuse_above(limit_bytes: int, size_bytes: int, path: Path) -> None:
    if size_bytes > limit_bytes:
        raise ModelError(
            f"checkpoint {path} unpacks to {size_bytes / 1e6:.1f} MB, more than this network with its optimiser and "
            f"averages could fill ({limit_bytes / 1e6:.1f} MB); name the right architecture, or save the state_dict() "
            "alone"
        )


def _limit(network_bytes: int) -> int:
    return SIZE_FACTOR * network_bytes + SIZE_ALLOWANCE_BYTES


def _check_instructions(path: Path) -> None:
    try:
        check_torch_file(path, ignored=frozenset(IGNORED_GLOBALS))
    except UnsafePickleError as error:
        if error.names:
            raise ModelError(
                f"checkpoint {path} asks for objects other than tensors ({_few(sorted(error.names))}), and loading "
                "them could run code; nothing was run. Where you trust its author, convert the state dict to "
                ".safetensors"
            ) from error
        raise ModelError(
            f"checkpoint {path} is refused: {error}; nothing of it was run. Where you trust its author, convert the "
            "state dict to .safetensors"
        ) from error
    except (ValueError, EOFError, OSError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise ModelError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return (
        f"checkpoint {path} cannot be read as plain weights ({_first_line(error)}); if it is whole, convert its state "
        "dict to .safetensors"
    )


def _find_tensors(content: object, *, depth: int) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or depth == 0:
        return {}
    for key in NESTED_KEYS:
        found = _find_tensors(content.get(key), depth=depth - 1)
        if found:
            return found
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _few(names: object) -> str:
    listed = [str(name) for name in names] if isinstance(names, (list, Mapping)) else []
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@final
class _Ignored:
    """Stands in for an object stored beside the weights: takes any arguments, keeps nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...
