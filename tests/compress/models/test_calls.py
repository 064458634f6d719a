"""Modules are watched only while they are meant to be."""

import pytest
import torch
from torch import nn

from compress.models.calls import recorded_calls


def test_calls_come_in_the_order_in_which_they_return() -> None:
    inner = nn.Linear(3, 2)
    outer = nn.Sequential(inner, nn.ReLU())
    images = torch.rand(4, 3)
    with recorded_calls([outer, inner]) as calls:
        returned = outer(images)
    assert [call.module for call in calls] == [inner, outer]
    assert [call.given is images for call in calls] == [True, True]
    assert calls[1].returned is returned


def test_a_module_that_runs_twice_is_recorded_twice() -> None:
    layer = nn.Linear(3, 3)
    with recorded_calls([layer]) as calls:
        layer(layer(torch.rand(1, 3)))
    assert len(calls) == 2


def test_nothing_stays_behind() -> None:
    layer = nn.Linear(3, 2)
    with recorded_calls([layer]) as calls:
        pass
    layer(torch.rand(1, 3))
    with pytest.raises(RuntimeError, match="shapes"), recorded_calls([layer]):
        layer(torch.rand(1, 5))
    assert calls == []
    assert not layer._forward_hooks
