"""Runs a function in several gloo processes and collects what each returns."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function: Callable[..., Any], world_size: int, folder: Path, *args: Any) -> list[Any]:
    """``function(*args)`` in each of ``world_size`` processes of one group -> their results, by rank.

    The group meets in a file of ``folder``. A process that fails, or hangs for two minutes, fails the test, and the
    others are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_main, args=(function, rank, world_size, folder, args), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        assert not errors, errors[0]
        assert all(process.exitcode == 0 for process in processes), "a process hangs or was killed"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"result-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _main(function, rank, world_size, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    try:
        torch.save(function(*args), folder / f"result-{rank}.pt")
    except Exception:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()
