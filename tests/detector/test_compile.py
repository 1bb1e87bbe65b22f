"""Networks that are compiled before they predict."""

from __future__ import annotations

import pytest
import torch

from detector import prediction
from detector.errors import InputError
from tests.detector.talkative import picture, talkative
from tests.detector.test_folding import frozen


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that is compiled, by a compiler that leaves it as it was traced and generates no code."""
    found = []

    def leave(graph, inputs):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    traced = torch.compile(prediction._outputs, backend=leave)
    monkeypatch.setattr(prediction, "compiled", lambda: traced)
    yield found
    torch._dynamo.reset()


def same(found, expected):
    assert len(found) == len(expected) > 10
    assert torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.boxes, expected.boxes, rtol=0, atol=0.05)
    assert torch.allclose(found.scores, expected.scores, rtol=0, atol=1e-3)


def test_one_graph_serves_all_weights_and_holds_none(graphs):
    model, image = frozen(), picture(200, 130)
    same(model.predict(image, compile=True), model.predict(image))
    assert len(graphs) == 1
    before = model.predict(image)
    with torch.no_grad():
        model.network.backbone.layer3[0].conv1.weight.mul_(1.7)
        model.network.head.box_deltas.weight.mul_(1.2)
    found = model.predict(image, compile=True)
    same(found, model.predict(image))
    assert not torch.allclose(found.scores[:5], before.scores[:5], atol=1e-3)
    assert len(graphs) == 1


def test_sizes_share_graphs_and_none_is_compiled_twice(graphs):
    model = talkative("dynamic_atss_r18")
    images = [picture(*size) for size in ((200, 130), (130, 200), (200, 150), (96, 96), (160, 97))]
    for image in images:
        same(model.predict(image, compile=True), model.predict(image))
    count = len(graphs)
    assert count < len(images)
    for image in images:
        model.predict(image, compile=True)
    assert len(graphs) == count


def test_what_can_not_be_compiled_is_one_sentence(monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nin this place")

    torch._dynamo.reset()
    monkeypatch.setattr(prediction, "compiled", lambda: torch.compile(prediction._outputs, backend=fail))
    model = talkative("dynamic_atss_r18")
    with pytest.raises(
        InputError, match=r"compile is true, but the network can't be compiled here .*compiler"
    ) as caught:
        model.predict(picture(200, 130), compile=True)
    assert "\n" not in str(caught.value)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_code_finds_the_same():
    model, image = frozen(), picture(200, 130)
    same(model.predict(image, compile=True), model.predict(image))
    coarse, exact = model.predict(image, compile=True, precision="bfloat16"), model.predict(image)
    assert coarse.scores[:10].mean() == pytest.approx(float(exact.scores[:10].mean()), abs=0.05)
