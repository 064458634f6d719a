"""Distillation as the research code bases write it, by us: what our training is timed against.

Pictures are cropped, mirrored and normalised one by one with PIL in a DataLoader, both networks compute in float32 with
channels first, the teacher runs at every step, and loss and accuracy are read at every step.

It runs in a process of its own, which waits while ours has its turn: how freed memory is kept is a setting of a whole
process, and ours must not lend it to the other.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
GAMMA, BETA = 0.1, 3.0


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, made into tensors one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.transform(Image.fromarray(self.images[index]))
        assert isinstance(image, torch.Tensor)
        return image, int(self.labels[index])


class ConventionalLoop:
    """One student and its teacher, epoch after epoch."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, images: np.ndarray, labels: np.ndarray, *, batch_size: int
    ) -> None:
        self.student = student.to(memory_format=torch.contiguous_format)
        self.teacher = teacher.to(memory_format=torch.contiguous_format).eval()
        self.loader = DataLoader(Pictures(images, labels), batch_size=batch_size, shuffle=True, drop_last=True)
        self.sum_of_losses = self.sum_of_accuracies = 0.0
        self.optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def epoch(self) -> float:
        """Seconds for all images once."""
        started = time.perf_counter()
        self.student.train()
        for images, labels in self.loader:
            logits = self.student(images)
            with torch.no_grad():
                answers = self.teacher(images)
            loss = F.cross_entropy(logits, labels) + BETA * weighted_transformed_matching(logits, answers)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            # What their meters do at every step.
            self.sum_of_losses += loss.item()
            self.sum_of_accuracies += (logits.argmax(dim=1) == labels).float().mean().item()
        return time.perf_counter() - started


def weighted_transformed_matching(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """WTTM from probabilities, as one writes it down from the paper."""
    powered = F.softmax(teacher, dim=1) ** GAMMA
    weight = powered.sum(dim=1)
    target = powered / weight.unsqueeze(1)
    return (weight * F.kl_div(F.log_softmax(student, dim=1), target, reduction="none").sum(dim=1)).mean()


class Loop(Protocol):
    """Whatever trains an epoch when it is told to."""

    @property
    def epoch(self) -> Callable[[], float]:
        """Train for one epoch; the seconds that it took."""
        ...


Build = Callable[[], Loop]


class Apart:
    """A loop in a process of its own that runs an epoch when it is told to."""

    def __init__(self, build: Build) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(build, theirs), daemon=True)
        self._process.start()
        self._connection = ours

    def epoch(self) -> float:
        """Seconds for all images once."""
        self.begin()
        return self.end()

    def begin(self) -> None:
        """Let it run an epoch, and do not wait for it."""
        self._connection.send("epoch")

    def end(self) -> float:
        """Seconds of the epoch that was begun."""
        seconds = self._connection.recv()
        assert isinstance(seconds, float)
        return seconds

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join()


def _serve(build: Build, connection: Connection) -> None:
    loop = build()
    while connection.recv() is not None:
        connection.send(loop.epoch())
