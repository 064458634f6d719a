"""Whether the server survives what nobody should send: each attack on a real server process, then the golden images.

    python -m benchmarks.serve.abuse --folder deploy

Prints a table; exit code 1 where an attack gets another answer than it must, where the golden images are not answered
right afterwards, or where memory stays. Takes about a minute, most of it waiting for the server's own time limits.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serve.attacks import NUM_CONNECTIONS, Attack, every_attack
from benchmarks.serve.deploy_folders import fresh_folder
from benchmarks.serve.load_test import machine, versions
from benchmarks.serve.running import Server, server
from compress.serve import ServeSettings

MAX_GROWTH_MB = 100
"""How much more memory than before the first attack the server may hold after any of them."""


def main() -> None:
    """Attack, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a deploy folder; by default a network with fresh weights")
    parser.add_argument("--rounds", type=int, default=1, help="all attacks again, to see whether memory grows")
    arguments = parser.parse_args()
    _allow_files(2 * NUM_CONNECTIONS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or fresh_folder(Path(scratch), {"source": "cifar", "name": "resnet8x4"}, 32)
        settings = ServeSettings(folder=folder.resolve(), port=0)
        with server(settings) as running:
            well = attacked(running, every_attack() * arguments.rounds)
    sys.exit(0 if well else 1)


def attacked(running: Server, attacks: Sequence[Attack]) -> bool:
    """Whether every attack ends as it must; prints the table."""
    well = running.answers_golden()
    start_mb = running.resident_mb()
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{machine()}; {said}; {start_mb:.0f} MB before the first attack\n")
    print("| attack | answer | seconds | memory after, MB | golden images after | as it must be |")
    print("|---|---|---:|---:|---|---|")
    for attack in attacks:
        begun = time.monotonic()
        outcome = attack.run(running)
        seconds = time.monotonic() - begun
        healthy = running.process.poll() is None and running.answers_golden()
        resident_mb = running.resident_mb()
        good = outcome.as_it_must and healthy and resident_mb <= start_mb + MAX_GROWTH_MB
        well &= good
        print(
            f"| {attack.name} | {outcome.told} | {seconds:.2f} | {resident_mb:.0f} | "
            f"{'right' if healthy else 'WRONG'} | {'yes' if good else 'NO'} |",
            flush=True,
        )
    print(f"\nmost memory ever: {running.resident_mb('VmHWM'):.0f} MB")
    return well


def _allow_files(number: int) -> None:
    """Each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number if hard == resource.RLIM_INFINITY else min(number, hard), hard))


if __name__ == "__main__":
    main()
