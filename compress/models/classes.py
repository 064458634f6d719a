"""Whether a network answers in the classes of the data, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from compress.errors import ModelError
from compress.models.checkpoint import read_card_facts
from compress.models.source import Source


def source_classes(source: Source) -> tuple[str, ...] | None:
    """The class names of the weights a source brings; None where nobody wrote them down.

    They come from the source's own list or, for a folder that this project saved, from its card.

    Raises:
        ModelError: the folder's card cannot be read.
    """
    if source.classes is not None:
        return source.classes
    if source.checkpoint is not None and source.checkpoint.is_dir():
        return read_card_facts(source.checkpoint).classes
    return None


def check_classes(source: Sequence[str], data: Sequence[str], *, owner: str = "the teacher") -> None:
    """Refuse class names that differ from the data's, or stand in another order.

    Raises:
        ModelError: naming both sides; `owner` says whose the `source` names are.
    """
    if len(source) != len(data):
        raise ModelError(
            f"{owner} has {len(source)} classes ({_few(source)}), the data has {len(data)} ({_few(data)}); "
            "take a teacher of these classes, or the data it was trained on"
        )
    differing = [index for index, names in enumerate(zip(source, data, strict=True)) if names[0] != names[1]]
    if not differing:
        return
    first = differing[0]
    where = f"at position {first} {owner} has {source[first]!r} where the data has {data[first]!r}"
    if sorted(source) == sorted(data):
        raise ModelError(
            f"{owner} has the data's classes in another order: {where}; bring the classes of the data into the "
            "teacher's order, for its outputs would be read as the wrong classes"
        )
    raise ModelError(
        f"{owner} has other classes than the data: {where} ({len(differing)} of {len(data)} differ); "
        "take a teacher of these classes, or rename the data's classes if they mean the same"
    )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, …"
