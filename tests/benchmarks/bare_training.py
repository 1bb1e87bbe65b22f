"""One training without Ray, MLflow and ledger: ``python -m tests.benchmarks.bare_training JOB``, the peer of a sweep.

JOB is JSON: the resolved configuration, the converted splits, and a folder for what it writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """Trains and evaluates as a worker of a sweep does."""
    job = json.loads(Path(sys.argv[1]).read_text())

    import torch

    from detector.config import TrainingConfig
    from detector.data.store import open_store
    from detector.training import train

    config = TrainingConfig.model_validate(job["config"])
    torch.set_num_threads(config.resources.cpus_per_worker)
    stores = [open_store(store) for store in job["stores"]]
    train(config, *stores, folder=Path(job["folder"]), device="cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main())
