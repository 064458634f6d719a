"""Inputs that fuzzing starts from, and damage done to them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""One folder for each target: seeds, what fuzzing found worth keeping, and every input that once broke something."""

INTERESTING = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
LARGEST_GROWTH = 64


def inputs_of(target: str) -> list[bytes]:
    """The corpus of a target in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def damaged(inputs: list[bytes], *, num: int, seed: int) -> Iterator[bytes]:
    """Inputs with a few random changes each; the same seed gives the same ones."""
    draw = random.Random(seed)
    for _ in range(num):
        data = bytearray(draw.choice(inputs))
        for _ in range(draw.randint(1, 4)):
            _damage_(data, inputs, draw)
        yield bytes(data)


def _damage_(data: bytearray, inputs: list[bytes], draw: random.Random) -> None:
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.randint(1, 16))
    match draw.randrange(6):
        case 0:  # a bit
            if start < len(data):
                data[start] ^= 1 << draw.randrange(8)
        case 1:  # a length or a count, perhaps
            data[start:end] = bytes([draw.choice(INTERESTING)]) * (end - start)
        case 2:  # cut off
            del data[start:]
        case 3:  # cut out
            del data[start:end]
        case 4:  # doubled
            data[start:start] = data[start : start + draw.randint(1, LARGEST_GROWTH)]
        case _:  # a piece of another
            other = draw.choice(inputs)
            place = draw.randrange(len(other) + 1)
            data[start:start] = other[place : place + draw.randint(1, LARGEST_GROWTH)]
