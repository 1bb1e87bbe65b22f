"""Updates by the fused optimisers equal those of torch's plain loops, on weights that are laid out channels-last."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD, AdamW

from detector.training import TrainingState, _batches
from tests.detector.conftest import small_config

PLAIN = {"sgd": SGD, "adamw": AdamW}


def begun(config, store) -> TrainingState:
    return TrainingState(config, store, torch.device("cpu"), pretrained=False)


class Witness:
    """Copies of the weights, in the order of their indices, which the plain optimiser updates."""

    def __init__(self, name: str, state: TrainingState) -> None:
        groups = [
            {
                **group,
                "params": [each.detach().clone(memory_format=torch.contiguous_format) for each in group["params"]],
            }
            for group in state.optimizer.param_groups
        ]
        self.optimizer = PLAIN[name]([{**group, "fused": False, "foreach": False} for group in groups])

    def follow(self, optimizer: torch.optim.Optimizer, *_) -> None:
        """The update that ``optimizer`` is about to make."""
        for mine, theirs in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            mine["lr"] = theirs["lr"]
            for copy, parameter in zip(mine["params"], theirs["params"], strict=True):
                copy.grad = parameter.grad.contiguous()
        self.optimizer.step()

    def check(self, state: TrainingState) -> None:
        for mine, theirs in zip(self.optimizer.param_groups, state.optimizer.param_groups, strict=True):
            for copy, parameter in zip(mine["params"], theirs["params"], strict=True):
                torch.testing.assert_close(parameter.detach(), copy, rtol=1e-5, atol=1e-6)


def laid_out_anew(value):
    """``value`` with every tensor in the order of its indices."""
    if isinstance(value, dict):
        return {key: laid_out_anew(item) for key, item in value.items()}
    return value.contiguous() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("resumed", ["never", "as saved", "laid out anew"])
def test_three_updates_are_those_of_the_plain_optimiser(generated, tmp_path, optimizer, resumed):
    config = small_config(
        model={"weights": "imagenet", "norm": "frozen_bn"},
        data={"short_side": 64, "long_side": 64},
        schedule={"optimizer": optimizer, "weight_decay": 0.01},
    )
    state = begun(config, generated[0])
    kernels = [each for each in state.model.network.parameters() if each.requires_grad and each.shape[2:] == (3, 3)]
    assert kernels
    assert not any(each.is_contiguous() for each in kernels)
    witness = Witness(optimizer, state)
    for step, batch in enumerate(_batches(config, generated[0], start=0, stop=3)):
        if step == 2 and resumed != "never":
            state.save(tmp_path)
            if resumed == "laid out anew":
                kept = torch.load(tmp_path / "state.pt", weights_only=True)
                torch.save(kept | {"optimizer": laid_out_anew(kept["optimizer"])}, tmp_path / "state.pt")
            state = begun(config, generated[0])
            state.load(tmp_path)
        hook = state.optimizer.register_step_pre_hook(witness.follow)
        state.update(batch)
        hook.remove()
        witness.check(state)
