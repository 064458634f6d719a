"""What a person watching a stage sees: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, final

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from compress.training_state import EpochReport, StepReport

SECONDS_BETWEEN_LINES = 5.0


@final
class Counter:
    """How far a piece of work of known size is."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn(label), BarColumn(), TimeRemainingColumn(), disable=not sys.stdout.isatty(), transient=True
        )
        self._task = self._bar.add_task(label, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Say that `done` of `total` steps are done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = done / (now - self._started)
            print(f"{self._label}: {done}/{total}, {rate:.0f}/s, {(total - done) / rate:.0f} s left", flush=True)


def training_progress(
    reports: Iterable[StepReport | EpochReport], *, label: str, num_epochs: int, num_images: int
) -> Iterator[EpochReport]:
    """Show training as it goes and pass the epoch reports on."""
    started, num_seen = time.monotonic(), 0
    columns = (TextColumn(label), BarColumn(), TextColumn("{task.fields[status]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task(label, total=num_epochs * num_images, status="")
        for report in reports:
            if isinstance(report, StepReport):
                done = (report.epoch - 1) * num_images + report.num_images
                bar.update(task, completed=done, status=f"{report.images_per_second:.0f} images/s")
                continue
            num_seen += 1
            bar.update(task, completed=report.epoch * num_images)
            left = (time.monotonic() - started) / num_seen * (num_epochs - report.epoch)
            line = f"{epoch_line(label, report, num_epochs)}  {left:.0f} s left"
            if bar.disable:
                print(line, flush=True)
            else:
                bar.console.print(line, highlight=False)
            yield report


def epoch_line(label: str, report: EpochReport, num_epochs: int) -> str:
    """One finished epoch in words."""
    return (
        f"{label}: epoch {report.epoch}/{num_epochs}  loss {report.train_loss:.4f}  "
        f"validation {report.validation_accuracy_top1:.2%}  {report.images_per_second:.0f} images/s"
    )
