"""What the ledger knows of one training, as a row sees it: the training and the evaluations that the row asks for.

An evaluation is named by a key: a hash of its split, the size of the images and the way from raw outputs to detections.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.errors import InputError

FORMAT = 1
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Record:
    """What is known of one training, and of those of its evaluations that were asked for."""

    identity: str
    folder: Path
    state: str = "pending"
    """"pending", "running", "finished" or "failed": of the training and the evaluations together. What a driver had
    begun that died is pending again."""
    trained: bool = False
    """Whether the training is finished, whatever its evaluations are."""
    step: int = 0
    """Completed iterations, as far as the journal says."""
    iterations: int = 0
    metrics: Metrics = field(default_factory=dict)
    """Final metrics; empty until all of it is finished."""
    evaluations: dict[str, Path] = field(default_factory=dict)
    """Folders with detections.json and per_class.json of the finished evaluations, by the prefix of their metrics."""
    error: str | None = None
    """Why it failed, in one sentence."""
    cancelled: bool = False
    """Whether it failed because the user took it out; it is then tried again only when it is put back."""
    started: float | None = None
    """Unix seconds of the first attempt."""
    finished: float | None = None
    """Unix seconds of the training's success or of its last failure."""
    seconds: float | None = None
    """Time spent in all attempts."""
    history: tuple[dict[str, Any], ...] = ()
    """Attempts: node, started, ended, from_step, to_step, outcome, error."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """Of the newest attempt: device, threads, workers, versions."""
    holder: str | None = None
    """Key of the sweep that is to train or to evaluate it now."""
    training: str | None = None
    """Unique name of this training; another one after `--fresh`."""
    stopped: dict[str, Any] | None = None
    """Where the scheduler of a search ended it early: "by", "step", "sweep", "metric", "value"; its state is pending,
    for it can be continued, but for that search it is over."""
    first_sweep: str | None = None
    """Key of the sweep that trained it first,"""
    first_row: str | None = None
    """the row there,"""
    first_seed: int | None = None
    """and the seed."""

    def over_for(self, sweep: str) -> bool:
        """Whether the search of ``sweep`` has stopped it and nobody is at it since."""
        return self.stopped is not None and self.stopped["sweep"] == sweep and self.state == "pending"

    @property
    def attempts(self) -> int:
        """How often it was started."""
        return len(self.history)

    @property
    def journal(self) -> Path:
        """Metrics over steps, one JSON object a line."""
        return self.folder / "journal.jsonl"

    @property
    def model(self) -> Path | None:
        """Folder for ``detector.load``, once it is trained."""
        return self.folder / "model" if self.trained else None


def read_record(
    identity: str,
    folder: Path,
    status: dict[str, Any],
    *,
    evaluations: Mapping[str, str],
    newest: dict[str, Any] | None,
    held: bool,
    now: float,
) -> Record:
    """The record that ``status`` (the ledger's status.json) describes.

    ``evaluations``: keys by the prefix of their metrics. ``newest``: the journal's last line. ``held``: whether the
    driver that holds the training is alive.
    """
    attempts = status["attempts"]
    training_state = _alive(status["state"], held)
    trained = training_state == "finished"
    step = status["iterations"] if trained else min(newest["step"] if newest else 0, status["iterations"] or 1 << 62)
    first = status.get("first") or {}
    known = status.get("evaluations", {})
    wanted = {prefix: known.get(key, {"state": "pending"}) for prefix, key in evaluations.items()}
    states = [_alive(one["state"], held) for one in wanted.values()] if trained else []
    # The training counts as finished only together with what was asked for.
    state = next((one for one in ("failed", "running", "pending") if one in states), training_state)
    errors = [one["error"] for one in wanted.values() if one["state"] == "failed"] if trained else [status.get("error")]
    metrics: Metrics = {}
    if state == "finished":
        metrics = dict(status.get("metrics") or {})
        for prefix, one in wanted.items():
            metrics |= {prefix + name: value for name, value in one["metrics"].items()}
    return Record(
        identity=identity,
        folder=folder,
        state=state,
        trained=trained,
        step=step,
        iterations=status["iterations"],
        metrics=metrics,
        evaluations={
            prefix: evaluation_folder(folder, key)
            for prefix, key in evaluations.items()
            if wanted[prefix]["state"] == "finished"
        },
        error=next(iter(errors), None) if state == "failed" else None,
        cancelled=bool(status.get("cancelled")),
        started=attempts[0]["started"] if attempts else None,
        finished=status.get("finished"),
        seconds=_spent(attempts, now if training_state == "running" else newest["time"] if newest else None),
        history=tuple(attempts),
        hardware=attempts[-1].get("hardware") or {} if attempts else {},
        holder=status.get("holder"),
        training=status["training"],
        stopped=None if trained else status.get("stopped"),
        first_sweep=first.get("sweep"),
        first_row=first.get("row"),
        first_seed=first.get("seed"),
    )


def evaluation_folder(training: Path, key: str) -> Path:
    """Where an evaluation's detections and figures by class lie."""
    return training / "evaluations" / key


def _alive(state: str, held: bool) -> str:
    return "pending" if state == "running" and not held else state


def _spent(attempts: list[dict[str, Any]], until: float | None) -> float | None:
    """Seconds in all attempts; one without an end lasted to ``until``."""
    if not attempts:
        return None
    return sum(max(0.0, (a.get("ended") or until or a["started"]) - a["started"]) for a in attempts)


# The document itself, status.json


def new_status(identity: str, *, sweep: str, row: str, seed: int, iterations: int) -> dict[str, Any]:
    """The status of a training that nothing is known of yet."""
    return {
        "format": FORMAT,
        "identity": identity,
        "training": uuid.uuid4().hex,
        "state": "pending",
        "iterations": iterations,
        "first": {"sweep": sweep, "row": row, "seed": seed},
        "attempts": [],
    }


def checked(status: Any | None, where: str) -> dict[str, Any] | None:
    """``status`` as it was read from ``where``; raises ``InputError`` for that of another version."""
    if status is not None and status.get("format") != FORMAT:
        raise InputError(
            f"{where} has format {status.get('format')}, but this version reads {FORMAT}; use the version that wrote "
            "it, or move the folder away to train it anew"
        )
    return status


def evaluations_of(status: dict[str, Any]) -> dict[str, Any]:
    """All evaluations, by key."""
    return status.get("evaluations") or {}


def finished_evaluations(status: dict[str, Any]) -> dict[str, Any]:
    """Those that are finished."""
    return {key: one for key, one in evaluations_of(status).items() if one["state"] == "finished"}


def end_attempts(
    status: dict[str, Any], outcome: str, *, at: float | None = None, error: str | None = None, step: int | None = None
) -> None:
    """Ends what has no end yet, ``at`` that time, or now; ``step`` iterations were complete."""
    for attempt in status["attempts"]:
        if "outcome" not in attempt:
            attempt.update(outcome=outcome, ended=time.time() if at is None else max(attempt["started"], at))
            if error:
                attempt["error"] = error
            if step is not None:
                attempt["to_step"] = step
