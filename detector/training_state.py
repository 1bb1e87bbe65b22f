"""What changes while training, and one iteration of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector import distributed
from detector.average import PREFIX, Average
from detector.breakdown import Breakdown, loud
from detector.checkpoints import load_state, save_model, save_state
from detector.config import TrainingConfig
from detector.criterion import Targets, Totals
from detector.data.loader import Batch
from detector.data.store import Store
from detector.errors import InputError
from detector.model import Detector, build_model
from detector.outputs import HeadOutputs
from detector.schedule import build_optimizer, lay_out_state, learning_rate, set_rate
from detector.window import Window


class TrainingState:
    """What changes while training: network, optimiser, average, step. Saved and restored whole."""

    def __init__(self, config: TrainingConfig, store: Store, device: torch.device, *, pretrained: bool = True) -> None:
        """``pretrained=False`` leaves the initial weights random; the rest is as with those that ``config`` names."""
        self.config, self.device, self.step = config, device, 0
        self.model: Detector = build_model(
            config.model,
            store.categories,
            short_side=config.data.evaluated_short_side,
            long_side=config.data.long_side,
            resize=config.data.resize,
            seed=config.seed,
            pretrained=pretrained,
        ).to(device)
        self.model.train()
        self.optimizer = build_optimizer(config.schedule, self.model.network)
        decay = config.schedule.ema
        self.average = Average(self.model.network, decay) if decay is not None else None
        self.breakdown = Breakdown(device)
        self.window = Window()
        # Evaluation has other shapes, and other kernels: it is left as it is.
        self.local: nn.Module = compiled(self.model.network) if config.resources.compile else self.model.network
        """The network of this process, as it is trained."""
        self.network = self.local
        """The same, in step with those of the other processes."""
        largest_share = -(-config.schedule.batch_size // distributed.world_size())
        self._accumulates = (config.resources.micro_batch_size or largest_share) < largest_share
        """Whether any process takes several micro-batches: the same in all of them."""
        if distributed.world_size() > 1:
            self.network = DistributedDataParallel(
                self.local,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

    def update(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """One iteration on this process' share of the global batch. Returns its part of the losses, and statistics.

        From the first loss or gradient that is not finite on, in any process, it changes nothing in any of them:
        ``breakdown`` knows the step.
        """
        set_rate(self.optimizer, learning_rate(self.config.schedule, self.step))
        progress = self.step / self.config.schedule.max_iterations
        micro_batches = [batch.to(self.device) for batch in micro_batches]
        totals = None
        if self._accumulates or len(micro_batches) > 1:
            # The normalisers of the whole batch are needed before the first backward pass. Where one process takes
            # several micro-batches all come here: their collectives, DDP's among them, must be in the same order.
            with torch.no_grad():
                parts = [self._targets(self.forward(batch), batch, progress).totals for batch in micro_batches]
            totals = _global(sum(parts[1:], parts[0]))
        losses: dict[str, Tensor] = {}
        for number, batch in enumerate(micro_batches, 1):
            with self._synchronised(number == len(micro_batches)):
                outputs = self.forward(batch, self.network)
                targets = self._targets(outputs, batch, progress)
                if totals is None:
                    totals = _global(targets.totals)
                part = self.model.criterion.losses(outputs, targets, totals)
                # DDP averages the gradients over the processes; the loss is a sum over them.
                (loud(torch.stack(list(part.values())).sum()) * distributed.world_size()).backward()
            for key, value in part.items():
                losses[key] = losses.get(key, 0) + value.detach()
        learned = [each for each in self.model.network.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in learned if each.grad is not None])
        self.breakdown.note(norm, losses, self.step + 1)
        if self.config.schedule.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(learned, self.config.schedule.clip_norm, norm)
        # Fused optimisers leave weights and their own state alone where this is 1, without asking the device.
        self.optimizer.found_inf = self.breakdown.flag  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model.network, self.breakdown.flag)
        self.step += 1
        assert totals is not None
        share = 1 / distributed.world_size()  # equal on all processes, and summed over them when logged
        return losses | {key: value * share for key, value in totals.statistics().items()}

    def rehearse(self, batch: Batch) -> None:
        """A pass forward and back, as ``update`` does one, on this process alone; what it leaves are gradients."""
        batch = batch.to(self.device)
        outputs = self.forward(batch, self.model.network)
        targets = self._targets(outputs, batch, 0.0)
        losses = self.model.criterion.losses(outputs, targets, targets.totals)
        torch.stack(list(losses.values())).sum().backward()

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are summed over the processes with the last micro-batch alone."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def forward(self, batch: Batch, network: nn.Module | None = None) -> HeadOutputs:
        """Raw outputs of ``network``, or of this process' own, in the schedule's precision."""
        network = self.local if network is None else network
        bfloat16 = self.config.schedule.precision == "bfloat16"
        images = self.model.normalise(batch.images, batch.sizes)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            if not self.config.resources.compile:
                return network(images)
            from torch._dynamo.exc import BackendCompilerFailed

            try:
                return network(images)
            except BackendCompilerFailed as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise InputError(
                    f"resources.compile is true, but the network can't be compiled here ({reason}); install a C++ "
                    "compiler, or set resources.compile=false"
                ) from error

    def _targets(self, outputs: HeadOutputs, batch: Batch, progress: float) -> Targets:
        return self.model.criterion.targets(outputs, batch.boxes, batch.labels, progress)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model has the averaged weights inside, where there are any."""
        if self.average is None:
            yield
            return
        kept = {key: value.clone() for key, value in self.model.network.state_dict().items()}
        self.model.network.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.network.load_state_dict(kept)

    def snapshot(self) -> Snapshot:
        """A copy in this machine's memory, which training on doesn't change. Waits for the device."""
        average = self.average.state_dict() if self.average is not None else None
        state: dict[str, Any] = {
            "step": self.step,
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "random": torch.get_rng_state(),
            "window": list(self.window.rows),
        }
        return Snapshot(self.model, self.step, _copied(state))

    def save(self, folder: Path) -> None:
        """Writes model/, state.pt and step.json."""
        self.snapshot().write(folder)

    def load(self, folder: Path) -> None:
        """Restores what ``save`` wrote."""
        state = load_state(folder)
        self.model.network.load_state_dict(state["network"])
        for group in state["optimizer"]["param_groups"]:
            group.update(fused=True, foreach=None)  # what earlier versions wrote had other ones
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_state(self.optimizer)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        self.window.rows = state.get("window", [])  # earlier versions kept none
        self.step = state["step"]


def compiled(network: nn.Module) -> nn.Module:
    """``network``, compiled when it is first called, with the same parameters."""
    return cast(nn.Module, torch.compile(network))


def _global(totals: Totals) -> Totals:
    return Totals(distributed.all_sum(totals.vector))


@dataclass(frozen=True)
class Snapshot:
    """A training state as it was after ``step`` iterations."""

    model: Detector
    """Only for what doesn't change: configuration and categories."""
    step: int
    state: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes model/, state.pt and step.json."""
        weights = self.state["network"]
        if self.state["average"] is not None:
            averaged = self.state["average"].items()
            weights = {key.removeprefix(PREFIX): value for key, value in averaged if key.startswith(PREFIX)}
        save_model(self.model, folder / "model", weights)
        save_state(folder, self.state, self.step)


def _copied(value: Any) -> Any:
    """``value`` with a copy of every tensor in it, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
