"""Watching modules while a network runs, where a library has no other way to what passes through them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import nn


class Call(NamedTuple):
    """A module that was called with one positional argument, or with this as the first."""

    module: nn.Module
    given: Any
    returned: Any


@contextmanager
def recorded_calls(modules: Iterable[nn.Module]) -> Generator[list[Call]]:
    """The calls of these modules while the context lasts, in the order in which they return."""
    calls: list[Call] = []

    def record(module: nn.Module, arguments: tuple[Any, ...], returned: Any) -> None:
        calls.append(Call(module, arguments[0], returned))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(record).remove)
        yield calls
