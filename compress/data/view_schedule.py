"""Which view of an image is seen in which epoch.

Teacher and students follow one schedule, so the teacher's answers can be stored once and shared.
"""

from __future__ import annotations

import numpy as np

from compress.data.views import Augmentation, PadCropFlip
from compress.settings import NonNegativeInt, PositiveInt, Settings
from compress.types import IndexArray


class ViewSettings(Settings):
    """Augmentation, shared by teacher and students."""

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
