"""A batch in pieces that go through the network one after the other: large batches on a small device.

The gradients of the pieces' mean losses, each weighted with its share of the images, add up to that of the batch. That
holds for losses that are means over images, and for what the network computes from single images; batch normalisation
takes its statistics from each piece alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from compress.errors import ParamsError
from compress.methods import Method
from compress.objective import StepInput, Taught
from compress.ranks import ALONE, Ranks
from compress.resident_teacher import Places
from compress.types import IndexArray


def check_micro_batches(method: Method, micro_batch_size: int | None) -> None:
    """Raise ParamsError if batches are to be taken in pieces and the method compares their images with each other."""
    if micro_batch_size is not None and method.compares_samples:
        raise ParamsError(
            f"train.micro_batch_size: {micro_batch_size} takes batches in pieces, and method "
            f"{method.model_dump()['name']} compares the images of a batch with each other: its loss would be another "
            "one; leave micro_batch_size out, or choose another method"
        )


def micro_batches(batch: StepInput, size: int | None, ranks: Ranks = ALONE) -> list[StepInput]:
    """The pieces of a batch, about `size` images each; the batch itself where it is not larger.

    Of several ranks each takes about `size` images of its own part at a time, and the pieces of one turn belong
    together. A piece has one image only where the batch has.
    """
    if size is None or len(batch.labels) <= size:
        return [batch]
    if ranks.divides(len(batch.whole)):
        pieces = _pieces_of_ranks(batch, size, ranks)
    else:
        pieces = ((own, batch.whole[own]) for own in _even_slices(len(batch.labels), size))
    return [_piece(batch, own, whole) for own, whole in pieces]


def share(piece: StepInput, pieces: list[StepInput]) -> float:
    """Part of a batch's images, those of all ranks, that is in this piece."""
    return len(piece.whole) / sum(len(each.whole) for each in pieces)


def _even_slices(num_images: int, size: int) -> Iterator[slice]:
    """Pieces of almost equal size: a small rest would have statistics of its own."""
    num_pieces = -(-num_images // size)
    ends = [num_images * number // num_pieces for number in range(num_pieces + 1)]
    return (slice(start, end) for start, end in pairwise(ends))


def _pieces_of_ranks(batch: StepInput, size: int, ranks: Ranks) -> Iterator[tuple[slice, IndexArray]]:
    """Pieces of as many pairs of images on every rank, so that those of one turn are divided as a batch is.

    The last piece takes what is left; it may have one pair more on some ranks.
    """
    parts = [ranks.places(rank, len(batch.whole)) for rank in range(ranks.num_ranks)]
    pairs = max(size // 2, 1)
    fewest = (len(batch.whole) + 1) // 2 // ranks.num_ranks
    num_pieces = -(-fewest // pairs)
    for number in range(num_pieces):
        start, end = 2 * pairs * number, 2 * pairs * (number + 1) if number < num_pieces - 1 else None
        chosen = [batch.whole[part[start:end]] for part in parts]
        whole = np.empty(sum(map(len, chosen)), dtype=np.int64)
        for rank, indices in enumerate(chosen):
            whole[ranks.places(rank, len(whole))] = indices
        yield slice(start, end), whole


def _piece(batch: StepInput, own: slice, whole: IndexArray) -> StepInput:
    places, taught = batch.places, batch.taught
    return batch._replace(
        images=batch.images[own],
        labels=batch.labels[own],
        indices=batch.indices[own],
        slots=batch.slots[own],
        whole=whole,
        places=None if places is None else Places(places.indices[own], places.slots[own]),
        taught=None if taught is None else Taught(taught.logits[own], taught.factor),
    )
