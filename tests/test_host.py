"""What the host does between a card's kernels: the numbers of the longer ways, and no questions asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from triptych.lora.adapter import add_lora
from triptych.lora.layers import ShortLinear, lora_switched_off
from triptych.tasks.tryon import TRY_ON
from triptych.training.data import Batch
from triptych.training.loss import Losses, LossMeter

from .device_sim import CARD, Card


@pytest.mark.parametrize("alpha", [4.0, 2.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_short_lora_layers_compute_as_pefts(alpha: float, autocast: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)).to(
        torch.bfloat16 if autocast else torch.float32
    )
    parameters = add_lora(model.requires_grad_(False), ["0", "1"], 4, alpha, 0.0, 0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_()
    inputs = torch.randn(3, 8, dtype=torch.bfloat16 if autocast else torch.float32)

    def results() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made = model(inputs)
        return [made, *torch.autograd.grad(made.float().square().sum(), parameters)]

    short = results()
    layers: list[Any] = [*model]
    assert [type(layer) for layer in layers] == [ShortLinear, ShortLinear]
    with lora_switched_off(model):
        base = model(inputs)
    assert torch.equal(base, nn.Sequential(*(layer.base_layer for layer in layers))(inputs))
    for layer in layers:
        layer.__class__ = Linear
    assert all(torch.equal(one, other) for one, other in zip(short, results(), strict=True))


def test_the_losses_of_a_step_are_asked_for_once() -> None:
    layout, meter = TRY_ON.layout(16, 16), LossMeter()
    with Card() as card:
        panels = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).cuda()
        area = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).cuda()
        t_B, nothing, norm = (torch.tensor(one).cuda() for one in ([0.1, 0.9], [0.0, 0.0], 7.0))
        batch = Batch(layout, nothing, nothing, t_B, {}, {}, nothing)
        card.waits.clear()
        meter.add(batch, Losses(panels, area, panels.mean(1)))
        assert not card.waits
        means, length = meter.means(CARD, norm)
        assert card.waits.total() == 1
    roles = [f"loss/{role}" for role in layout.roles]
    assert roles[0] not in means and means[roles[1]] == 2 and means[roles[2]] == 4.5 and length == 7
    assert means["loss"] == 3.5 and means["loss/t 0.00-0.25"] == 2 and means["loss/t 0.75-1.00"] == 5
