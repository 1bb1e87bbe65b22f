"""Two workers of one thread each against one, ATSS R50, two images of 512x512 a worker, gradients over gloo."""

from __future__ import annotations

import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.benchmarks.alternating import Figure, Pairs
from tests.benchmarks.training_step import OurStep, backbone_weights

IMAGES, PAIRS, WARM_UP = 2, 7, 1


def measure() -> list[Figure]:
    """Seconds an image: the pair should reach 88 % of double the speed of one."""
    context = mp.get_context("spawn")
    with backbone_weights() as weights, tempfile.TemporaryDirectory(prefix="detsweep-") as folder:
        pipes, processes = [], []
        for rank in (None, 0, 1):
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, rank, weights, Path(folder)), daemon=True)
            process.start()
            pipes.append(mine)
            processes.append(process)
        try:
            for pipe in pipes:
                pipe.recv()
            alone: list[float] = []
            together: list[float] = []
            for number in range(WARM_UP + PAIRS):
                sides = [(pipes[:1], alone), (pipes[1:], together)]
                for group, times in sides if number % 2 == 0 else reversed(sides):
                    began = time.perf_counter()
                    for pipe in group:
                        pipe.send(True)
                    for pipe in group:
                        pipe.recv()
                    times.append((time.perf_counter() - began) / (IMAGES * len(group)))
        finally:
            for process in processes:
                process.kill()
                process.join()
    pairs = Pairs(together[WARM_UP:], alone[WARM_UP:])
    return [pairs.figure("two workers, s an image", at_least=2 * 0.88, peer="one worker")]


def _work(pipe: Connection, rank: int | None, weights: Path, folder: Path) -> None:
    """A worker of the pair or, without a rank, one on its own: a step whenever it is asked for one."""
    torch.set_num_threads(1)
    if rank is not None:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    step = OurStep(weights, "float32", IMAGES)
    pipe.send(True)
    while pipe.recv():
        step()
        pipe.send(True)
