"""A storage that is away for a moment ends nothing, and one that stays away does."""

from __future__ import annotations

import threading

import pytest

from detector.errors import UnreachableError
from orchestrator import outage
from orchestrator.outage import Outage, wait_out


def test_a_storage_may_be_away_for_a_while_each_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    tried = Outage(60.0)

    def look(at: float, *, away: bool) -> None:
        now[0] = at
        with tried.borne():
            if away:
                raise UnreachableError("503")

    for at in (0.0, 30.0, 60.0):
        look(at, away=True)
    look(61.0, away=False)
    look(62.0, away=True)
    look(120.0, away=True)
    with pytest.raises(UnreachableError, match="503"):
        look(123.0, away=True)
    assert capfd.readouterr().err == "503; trying again for 60 s, training goes on\n" * 2


def test_other_errors_are_raised_at_once() -> None:
    with pytest.raises(KeyError), Outage(60.0).borne():
        raise KeyError("x")


def test_who_needs_a_storage_waits_for_it_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], [0]

    class Clock(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            now[0] += timeout or 0.0
            return self.is_set()

    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    stop = Clock()

    def look() -> str:
        looks[0] += 1
        if now[0] < 30:
            raise UnreachableError("503")
        return "seen"

    assert wait_out(look, 60.0, stop) == "seen"
    assert looks == [31]
    now[0] = 0.0
    with pytest.raises(UnreachableError):
        wait_out(look, 20.0, stop)
    now[0], looks[0] = 0.0, 0
    stop.set()
    with pytest.raises(UnreachableError):
        wait_out(look, 60.0, stop)
    assert looks == [1], "nobody is kept waiting who is to end"
