"""Schedules as pure functions of the step, optimisers as settings."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.optimization import SGD, AdamW, Constant, Cosine, OneCycle, Step, set_learning_rate_, update_average_


def test_step_schedule_drops_after_its_milestones() -> None:
    schedule = Step(milestones=(2, 3), decay=0.1)
    assert [schedule.factor(epoch, 5) for epoch in (0, 1.99, 2, 3, 4.5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_cosine_schedule_is_torchs_cosine_annealing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    for epoch in range(10):
        assert Cosine(final_fraction=0.1).factor(epoch, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_warmup_climbs_linearly_to_the_peak_and_hands_over_there() -> None:
    schedule = Cosine(warmup_epochs=2)
    assert [schedule.factor(epoch, 10) for epoch in (0, 0.5, 1, 2)] == pytest.approx([0, 0.25, 0.5, 1])
    assert schedule.factor(10, 10) == pytest.approx(0)


def test_one_cycle_starts_low_peaks_once_and_ends_at_zero() -> None:
    schedule = OneCycle(peak_at=0.25, initial_fraction=0.04)
    assert [schedule.factor(epoch, 8) for epoch in (0, 2, 8)] == pytest.approx([0.04, 1, 0])
    factors = [schedule.factor(step / 10, 8) for step in range(81)]
    assert factors.index(max(factors)) == 20


def test_constant_schedule_stays() -> None:
    assert Constant().factor(3, 10) == 1


def test_adamw_spares_biases_and_norms_from_weight_decay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, spared = AdamW(weight_decay=0.1).build(network).param_groups
    assert decayed["weight_decay"] == 0.1
    assert [p.ndim for p in decayed["params"]] == [4]
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 3


def test_setting_the_learning_rate_reaches_every_group() -> None:
    optimizer = AdamW().build(nn.Linear(2, 2))
    set_learning_rate_(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_fused_sgd_takes_the_same_steps_as_plain_sgd() -> None:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    ours, plain = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    for layer in (ours, plain):
        layer.load_state_dict({"weight": weights})
    fused = SGD(learning_rate=0.1, weight_decay=0.01).build(ours)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for layer, optimizer in ((ours, fused), (plain, reference)):
            optimizer.zero_grad()
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def test_the_moving_average_has_the_bits_of_torchs() -> None:
    """Batch statistics and the count of batches, an integer, included."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ours, torchs = (AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) for _ in range(2))
    for _ in range(4):
        network(torch.rand(2, 3, 8, 8))
        with torch.no_grad():
            network[0].weight.add_(torch.randn_like(network[0].weight))
        update_average_(ours, network)
        torchs.update_parameters(network)
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
