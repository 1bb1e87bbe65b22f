"""What the benchmarks measure is what ``docs/performance.md`` says that they do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from tests.benchmarks import assignment
from tests.benchmarks.__main__ import LONG
from tests.benchmarks.alternating import Pairs

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_assignment_is_judged_with_one_thread_and_with_all(monkeypatch):
    used = []

    def alternate(*_, **__):
        used.append(torch.get_num_threads())
        return Pairs([1.0], [2.0])

    class Case:
        anchors = ()

        def __init__(self, *_):
            pass

        def ours(self):
            return SimpleNamespace(gt_index=torch.zeros(1))

        def peer(self):
            return torch.zeros(1)

    monkeypatch.setattr(assignment, "alternate", alternate)
    monkeypatch.setattr(assignment, "_Case", Case)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    figures = assignment.measure()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert used == [1] * 4 + [2] * 4
    assert [figure.what.endswith("1 thread, s") for figure in figures] == [True] * 4 + [False] * 4
    assert all(figure.goal is not None for figure in figures)


def test_what_is_measured_by_name_alone_is_said():
    opening = PAGE.read_text().split("\n## ")[0]
    assert all(f"`{name}`" in opening for name in LONG)
