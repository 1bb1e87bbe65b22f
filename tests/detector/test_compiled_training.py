"""``resources.compile`` changes how a step is computed, and not its result."""

from __future__ import annotations

import pytest
import torch

from detector import training_state
from detector.errors import InputError
from detector.training import TrainingState, _batches
from tests.detector.conftest import small_config

# Random weights with GroupNorm, and as the recipes have it: frozen normalisation in place, on channels-last tensors.
BACKBONES = [{"norm": "gn"}, {"weights": "imagenet", "norm": "frozen_bn"}]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(config, store, count=2):
    """Losses of the first steps, and the weights after them."""
    state = TrainingState(config, store, torch.device("cpu"), pretrained=False)
    losses = [state.update(batches) for batches in _batches(config, store, start=0, stop=count)]
    return losses, state.model.network.state_dict()


def compare(plain, other):
    for mine, theirs in zip(plain[0], other[0], strict=True):
        for key, value in mine.items():
            assert theirs[key].item() == pytest.approx(value.item(), rel=1e-4), key
    assert plain[1].keys() == other[1].keys()
    assert all(torch.allclose(value, other[1][key], atol=1e-5) for key, value in plain[1].items())


def configs(**changes):
    return [small_config(resources={"compile": compile}, **changes) for compile in (False, True)]


@pytest.mark.parametrize("model", BACKBONES)
def test_a_traced_step_is_the_same_step(generated, monkeypatch, model):
    """With a compiler that leaves the graph as it was traced, forward and backward."""
    graphs = []

    def traced(network):
        def leave(graph, inputs):
            graphs.append(graph)
            return graph.forward

        return torch.compile(network, backend=leave)

    monkeypatch.setattr(training_state, "compiled", traced)
    plain, compiled = configs(model=model, data={"short_side": [64, 96]})
    compare(steps(plain, generated[0], 4), steps(compiled, generated[0], 4))
    assert 1 <= len(graphs) <= 2  # one for the first size, at most one for all others


@pytest.mark.slow
@pytest.mark.parametrize("model", BACKBONES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_step_is_the_same_step(generated, precision, model):
    both = configs(model=model, schedule={"precision": precision})
    plain, compiled = (steps(config, generated[0]) for config in both)
    if precision == "float32":
        compare(plain, compiled)
        return
    for mine, theirs in zip(plain[0], compiled[0], strict=True):
        assert theirs["loss_cls"].item() == pytest.approx(mine["loss_cls"].item(), rel=0.02)


def test_what_can_not_be_compiled_is_one_sentence(generated, monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(training_state, "compiled", lambda network: torch.compile(network, backend=fail))
    with pytest.raises(InputError, match=r"resources.compile is true, but .*or set resources.compile=false"):
        steps(configs(model=BACKBONES[0])[1], generated[0], 1)
