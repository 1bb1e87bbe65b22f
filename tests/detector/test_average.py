"""The average of the weights is torch's, to the bit, and reads what torch's wrote."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from detector.average import Average

GOES_ON, BROKEN = torch.zeros(()), torch.ones(())


def moving(averaged, current, _):
    change = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(change, (1 - 0.9) * (1 - GOES_ON))
    torch._foreach_add_(averaged, change)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def changed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for each in (*model.parameters(), model[1].running_mean):
            each.add_(torch.randn_like(each))
    return model


def test_it_is_torchs_also_where_that_ones_state_is_gone_on_from():
    model = network()
    witness, ours = AveragedModel(model, multi_avg_fn=moving), Average(model, 0.9)
    for step in range(5):
        if step == 3:
            ours = Average(network(), 0.9)
            ours.load_state_dict(witness.state_dict())
        changed(model)
        witness.update_parameters(model)
        ours.update(model, GOES_ON)
        expected, found = witness.state_dict(), ours.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_after_a_breakdown_it_stays_as_it_is():
    model = network()
    ours = Average(model, 0.9)
    ours.update(changed(model), GOES_ON)
    before = [each.clone() for each in ours.module.parameters()]
    ours.update(changed(model), BROKEN)
    assert all(map(torch.equal, ours.module.parameters(), before))
