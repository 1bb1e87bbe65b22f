"""Ray Train without what our trainings don't use: each process beside a worker costs seconds of a core to start.

The workers open torch's process group themselves. Ray Train's own way (``TorchConfig``) does it from the controller,
and whoever only starts and watches workers would import torch, too. A training of one worker has no group at all. Nor
are there Ray datasets, for which an actor would stand by.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

TIMEOUT_S = 1800.0
"""Of a collective. Standstills are found earlier, by what each worker says of its progress."""


class _SeesAllDevices(Backend):
    """GPUs of one node reach each other only if each worker sees those of the others."""

    share_cuda_visible_devices = True


class WorkersMeet(BackendConfig):
    """What Ray Train is told: to start workers, and nothing of torch."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SeesAllDevices


class PlainTrainer(DataParallelTrainer):
    """Workers that run a function, and nothing else."""

    def _create_default_callbacks(self) -> list[Any]:
        # Where Ray calls this by another name, the actor stands by, and does nothing.
        return [one for one in super()._create_default_callbacks() if type(one).__name__ != "DatasetsCallback"]


@contextlib.contextmanager
def process_group(*, gpus: bool) -> Iterator[None]:
    """Torch's default process group of this training's workers, inside one of them; none where it is alone.

    With ``gpus`` the worker's own GPU becomes torch's current device. After an error the group stays: its process ends.
    """
    import ray.train
    import torch

    if gpus and torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    context: Any = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    # As torchrun and Ray Train leave them for whoever asks.
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    if size == 1:
        yield
        return
    import torch.distributed as dist
    from ray.train.collective import broadcast_from_rank_zero

    meeting = broadcast_from_rank_zero(_free_address() if rank == 0 else None)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        init_method=f"tcp://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    yield
    dist.destroy_process_group()


def _free_address() -> str:
    """Of this node, with a port that nobody listens on."""
    import ray

    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind(("", 0))
        port = found.getsockname()[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
