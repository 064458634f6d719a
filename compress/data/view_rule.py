"""What every augmentation can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

from compress.data.counter_hash import Keys
from compress.data.prepared import PreparedSplit
from compress.settings import Settings
from compress.types import ByteImages, IndexArray


class ViewRule(Settings, ABC):
    """How views are made from an image."""

    @property
    @abstractmethod
    def num_views(self) -> int | None:
        """Different views of one image, the slots 0..num_views - 1; None: unlimited, every slot is a new draw."""

    @abstractmethod
    def make(self, split: PreparedSplit, *, indices: IndexArray, keys: Keys, slots: IndexArray) -> ByteImages:
        """Views of images; `keys` holds one random key for each, from seed and index."""
