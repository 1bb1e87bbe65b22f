"""What starts and watches workers needs no torch and no datasets; one worker opens no process group."""

from __future__ import annotations

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

    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    with process_group(gpus=False):
        assert not dist.is_initialized()
