"""A stage that torchrun started several times: all ranks compute, the first one speaks, writes and tracks."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from compress.ranks import Ranks, joined_ranks


@contextmanager
def ranks_of_stage() -> Generator[Ranks]:
    """The ranks of this stage, joined; what the others than the first print is not shown, but for errors.

    Raises:
        TrainingError: another rank has ended or does not answer.
    """
    with joined_ranks() as ranks:
        if ranks.is_first:
            yield ranks
            return
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield ranks
