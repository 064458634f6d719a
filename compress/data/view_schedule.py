"""Which view of an image is seen in which epoch.

Teacher and students follow one schedule, so the teacher's answers can be stored once and shared.
"""

from __future__ import annotations

import numpy as np

from compress.data.views import Augmentation, PadCropFlip
from compress.settings import NonNegativeInt, PositiveInt, Settings
from compress.types import IndexArray


class ViewSettings(Settings):
    """Augmentation, shared by teacher and students.

    An image comes back in a view that it had before only after all its `views_per_image` views were seen. Each view is
    a fair draw, so with at least as many views as epochs training sees what online augmentation would have shown.
    The same holds for all views that an augmentation has (162 for pad_crop_flip): online augmentation has no others to
    show, and only their order is more even here. Fewer views than that are fewer different training images.
    """

    augmentation: Augmentation = PadCropFlip()
    """How a view is made from an image."""
    views_per_image: PositiveInt = 16
    """Distinct views of each image; epoch e shows view e modulo this number. With as many views as epochs,
    or all views that the augmentation has, this is statistically the same as augmenting anew each time."""
    seed: NonNegativeInt = 0
    """Chooses the views."""

    @property
    def num_slots(self) -> int:
        """Distinct views that there really are: an augmentation with fewer views limits them."""
        available = self.augmentation.num_views
        return self.views_per_image if available is None else min(self.views_per_image, available)

    def slots(self, num_images: int, epoch: int) -> IndexArray:
        """The view slot of each of `num_images` images in an epoch."""
        return np.full(num_images, epoch % self.num_slots, dtype=np.int64)

    def describe(self, num_epochs: int) -> str:
        """In one line, how many distinct views of an image so many epochs show, and what that is worth."""
        name, available = self.augmentation.name, self.augmentation.num_views
        num_seen = min(self.num_slots, num_epochs)
        if available == 1:
            return f"{name}: every epoch shows each image in its only view"
        views = f"{name}: {_counted(num_epochs, 'epoch')} {'shows' if num_epochs == 1 else 'show'} each image in"
        if num_seen == num_epochs:
            return f"{views} {_counted(num_seen, 'distinct view')}, as online augmentation: a new one every epoch"
        times = num_epochs // num_seen
        often = f"{times} times" if num_epochs % num_seen == 0 else f"{times} or {times + 1} times"
        if num_seen == available:
            return f"{views} all its {num_seen} views, {often} each, statistically as online augmentation"
        enough = num_epochs if available is None else min(num_epochs, available)
        return (
            f"{views} {_counted(num_seen, 'distinct view')}, {often} each; "
            f"views_per_image {enough} would be as online augmentation"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
