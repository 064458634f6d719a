"""One target under atheris, until its time is over or it crashes.

python -m tests.fuzzing.one TARGET [libFuzzer's options and folders]
"""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["compress", "pipelines", "PIL", "yaml", "python_multipart", "zipfile"]):
    import zipfile  # noqa: F401

    from tests.fuzzing.targets import TARGETS


def main() -> None:
    """Fuzz; libFuzzer ends the process."""
    import logging

    logging.disable(logging.CRITICAL)  # the readers warn of damaged files, millions of times here
    warnings.simplefilter("ignore")
    name, *options = sys.argv[1:]
    target = TARGETS[name]
    target(b"")  # what is imported late is imported now
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
