"""Being asked to end while data are drawn, imported, converted or unpacked: nothing half made stays."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.config import GeneratedDataConfig
from detector.data import conversion, synthetic
from detector.data.ending import PLAIN, ends_in_order
from detector.data.importers import import_folder
from detector.data.store import convert
from detector.data.synthetic import generate
from tests.detector.data.sets import write_set

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}


@pytest.fixture(autouse=True)
def plain_handlers() -> Iterator[None]:
    """As in a command that was just started; a shell may have had SIGINT ignored, a library may have its own."""
    before = {number: signal.signal(number, handler) for number, handler in PLAIN.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("work", ["draw", "import", "convert"])
def test_nothing_half_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, number: int) -> None:
    source = write_set(tmp_path / "set", sizes={1: (60, 80), 2: (60, 80)})
    out = tmp_path / "out"
    out.mkdir()

    def end(*_: object, **__: object) -> None:
        assert any(path.name.startswith(".") for path in out.iterdir())  # it has begun
        os.kill(os.getpid(), number)

    monkeypatch.setattr(synthetic, "draw_image", end)
    monkeypatch.setattr(shutil, "copyfile", end)
    monkeypatch.setattr(conversion, "decode_image", end)
    before = signal.getsignal(number)
    works = {
        "draw": lambda: generate(GeneratedDataConfig(train_images=1, val_images=1), out, progress=False),
        "import": lambda: import_folder(source, out / "imported", val=0.5),
        "convert": lambda: convert(source, "train", out / "store", progress=False),
    }
    with pytest.raises(SIGNALS[number]) as caught:
        works[work]()
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 128 + number
    assert list(out.iterdir()) == []
    assert signal.getsignal(number) is before


def test_the_handlers_of_others_stay() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with ends_in_order():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_signal_does_not_disturb_the_first() -> None:
    removed: list[bool] = []

    @ends_in_order()
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            removed.append(True)

    with pytest.raises(SystemExit):
        work()
    assert removed
