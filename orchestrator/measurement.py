"""``--dry-run --measure``: some steps of each distinct workload of a sweep, timed on this machine.

Each in a process of its own (:mod:`orchestrator.step_timing`), one after the other, so that one that fails or is ended
by the system says so and the others go on. On CPUs as many more as there are cores for do the same beside it: a sweep
keeps them busy, too, and cores share caches and memory. Nothing of the sweep is written but what was measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from detector.data.coco import read_split, training_boxes
from detector.data.places import find_images
from detector.progress import Progress
from orchestrator.costs import Measurement, remember, workload_key
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, PlannedRow

IMAGES = 128
"""Images of the training split that steps are taken from, spread over all of it."""
LONGEST_S = 1200.0
"""After so long a workload is given up."""


def measure(plan: Plan, ledger: Ledger) -> dict[str, Measurement]:
    """Measures each distinct workload of ``plan``, shows progress on standard error, and keeps what was found.

    The result is by workload.
    """
    rows = {workload_key(row): row for row in reversed(plan.rows)}
    progress = Progress(len(rows), "measured")
    found: dict[str, Measurement] = {}
    for key, row in reversed(rows.items()):

        def tell(text: str, name: str = row.row) -> None:
            progress.update(len(found), f"{name}: {text}")

        tell("reading the data")
        found[key] = _measured(row, tell)
        if found[key].error is None:
            # What can't be kept has been measured all the same.
            with contextlib.suppress(Exception):
                remember(ledger.place, key, found[key])
    progress.update(len(found))
    progress.close()
    return found


def _measured(row: PlannedRow, tell: Callable[[str], None]) -> Measurement:
    job = {
        "config": row.config.model_dump(mode="json"),
        "sample": sample(row),
        "memory_bytes": memory_of_a_worker(row.config.resources.cpus_per_worker),
    }
    beside = _beside(row)
    with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch, contextlib.ExitStack() as stack:
        asked, answered, words = (Path(scratch) / name for name in ("job.json", "result.json", "words.txt"))
        asked.write_text(json.dumps(job))
        for number in range(beside):
            other = _started(
                row, asked, Path(scratch) / f"result-{number}.json", subprocess.DEVNULL, subprocess.DEVNULL
            )
            stack.callback(_ended, other)
        with words.open("w") as stderr:
            process = _started(row, asked, answered, subprocess.PIPE, stderr)
            status = _followed(process, tell)
        if answered.exists():
            return Measurement(**{**json.loads(answered.read_text()), "beside": beside})
        said = [line for line in words.read_text(errors="replace").splitlines() if line.strip()]
        return Measurement(error=_ending(status, said, row), time=time.time())


def _started(row: PlannedRow, asked: Path, answered: Path, output: int, errors: IO[str] | int) -> subprocess.Popen[str]:
    packages = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.step_timing", str(asked), str(answered)],
        stdout=output,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(row.config.resources.cpus_per_worker)},
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _beside(row: PlannedRow) -> int:
    """How many others there are cores for, where the steps are taken on cores."""
    resources = row.config.resources
    on_gpu = resources.gpus_per_worker != 0 and os.path.exists("/dev/nvidiactl")
    return 0 if on_gpu else max(1, cores() // resources.cpus_per_worker) - 1


def _followed(process: subprocess.Popen[str], tell: Callable[[str], None]) -> int | None:
    """The exit status; None where it took too long and was ended."""
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(LONGEST_S, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tell(line.strip())
        status = process.wait()
        return None if late.is_set() else status
    finally:
        timer.cancel()
        process.kill()  # nothing, if it has ended
        process.wait()


def _ending(status: int | None, words: list[str], row: PlannedRow) -> str:
    if status is None:
        return f"a few steps took more than {LONGEST_S / 60:g} min"
    if status == -signal.SIGKILL:
        return (
            "the system ended it, as it does where memory is short; set resources.micro_batch_size below "
            f"{row.config.resources.micro_batch_size or row.config.schedule.batch_size}"
        )
    last = words[-1][:300] if words else "without a word"
    return f"its process ended with status {status} ({last})"


def sample(row: PlannedRow) -> dict[str, Any]:
    """Images and boxes of the training split, as plain values: the data's own, or of their size where there are none.

    Images that can't be opened make noise of them, too: sizes and boxes decide what a step costs.
    """
    config, facts = row.config, row.train
    assert facts is not None
    categories = [list(pair) for pair in facts.categories]
    if not facts.there and config.data.generated is not None:
        images = _made_up(config.data.generated.long_side, len(categories))
        return {"root": facts.root, "real": False, "categories": categories, "images": images}
    split, folder = read_split(facts.root, facts.split), find_images(facts.root, facts.split)
    counts = np.diff(split.offsets)
    clipped, kept = training_boxes(split.boxes, np.repeat(split.sizes, counts, 0), split.crowd)
    owner = np.repeat(np.arange(len(split)), counts)
    trained = np.arange(len(split)) if config.data.keep_empty else np.unique(owner[kept])
    chosen = trained[np.linspace(0, len(trained) - 1, min(IMAGES, len(trained))).round().astype(int)]
    label = {number: index for index, (number, _) in enumerate(facts.categories)}
    images = []
    real = True
    for place in dict.fromkeys(chosen.tolist()):
        mine = np.flatnonzero((owner == place) & kept)
        path = folder / split.file_names[place]
        real = real and path.is_file()
        images.append(
            {
                "path": str(path) if path.is_file() else None,
                "size": split.sizes[place].tolist(),
                "boxes": clipped[mine].tolist(),
                "labels": [label[number] for number in split.category_ids[mine].tolist()],
            }
        )
    return {"root": facts.root, "real": real, "categories": categories, "images": images}


def _made_up(long_side: int, classes: int) -> list[dict[str, Any]]:
    """As many, twice as high as wide to twice as wide as high, with five boxes each."""
    random = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    for _ in range(IMAGES // 4):
        short = int(random.integers(long_side // 2, long_side + 1))
        height, width = (short, long_side) if random.random() < 0.5 else (long_side, short)
        corner = random.uniform(0, 0.5, (5, 2)) * (width, height)
        boxes = np.concatenate([corner, corner + random.uniform(0.1, 0.5, (5, 2)) * (width, height)], 1)
        labels = random.integers(classes, size=5).tolist()
        images.append({"path": None, "size": [height, width], "boxes": boxes.tolist(), "labels": labels})
    return images


def memory_of_a_worker(cpus_per_worker: int) -> int:
    """Bytes that a worker on a CPU has here: what is free, shared by as many workers as the cores are for."""
    import psutil

    free = min(psutil.virtual_memory().available, *_bounds())
    return int(free // max(1, cores() // cpus_per_worker))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bounds() -> list[int]:
    """Of a container, where it has one: what its control group leaves."""
    found = [1 << 62]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return found
