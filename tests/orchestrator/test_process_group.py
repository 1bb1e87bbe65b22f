"""What starts and watches workers needs no torch and no datasets; one worker opens no process group."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

CODE = """
import sys
import ray.train
import orchestrator.trial, orchestrator.worker
from orchestrator.process_group import PlainTrainer, WorkersMeet
trainer = PlainTrainer(
    orchestrator.worker.work,
    backend_config=WorkersMeet(),
    scaling_config=ray.train.ScalingConfig(num_workers=2),
    run_config=ray.train.RunConfig(name="a", storage_path="/tmp"),
)
print(*[type(one).__name__ for one in trainer._create_default_callbacks()])
print(WorkersMeet().backend_cls().share_cuda_visible_devices, "torch" in sys.modules)
"""


def test_who_starts_workers_imports_no_torch_and_keeps_no_datasets() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    callbacks, rest = done.stdout.splitlines()
    assert "BackendSetupCallback" in callbacks
    assert "PlacementGroupCleanerCallback" in callbacks
    assert "DatasetsCallback" not in callbacks
    assert rest == "True False"


def test_one_worker_has_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    import torch.distributed as dist

    from orchestrator.process_group import process_group

    numbers = {"world_rank": 0, "world_size": 1, "local_rank": 0, "local_world_size": 1, "node_rank": 0}
    context = SimpleNamespace(**{f"get_{name}": lambda value=value: value for name, value in numbers.items()})
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with process_group(gpus=False):
        assert not dist.is_initialized()
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
