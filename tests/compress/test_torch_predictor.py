"""A network as a Predictor."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from compress.torch_predictor import TorchPredictor
from tests.compress.onnx_files import random_images


class MeanColour(nn.Module):
    """Logits are the mean of each channel; in training mode they are all wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        assert images.shape[1] == 3
        return images.mean((2, 3)) * self.scale * (-1 if self.training else 1)


def test_pixels_reach_the_network_in_0_to_1_and_in_evaluation_mode() -> None:
    images = random_images(5)
    network = MeanColour().train()
    logits = TorchPredictor(network, torch.device("cpu"))(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, images.mean(axis=(1, 2)) / 255, rtol=1e-6)
    assert network.training, "the caller's network stays as it was"


def test_training_on_does_not_change_its_answers() -> None:
    images = random_images(5)
    network = MeanColour()
    predictor = TorchPredictor(network, torch.device("cpu"))
    before = predictor(images)
    with torch.no_grad():
        network.scale.zero_()
    np.testing.assert_array_equal(predictor(images), before)


def test_read_only_images_are_answered_without_a_warning() -> None:
    images = random_images(2)
    images.setflags(write=False)
    assert TorchPredictor(MeanColour(), torch.device("cpu"))(images).shape == (2, 3)
