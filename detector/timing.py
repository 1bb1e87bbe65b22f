"""How long one image takes: from its pixels to its boxes, as Table 5 of the paper means it."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from detector.config import DataConfig
from detector.model import Detector
from detector.pictures import Picture
from detector.prediction import Options, find

WARM_UP = 3
TIMED = 20


def inference_ms(model: Detector, pictures: Sequence[Picture], data: DataConfig, options: Options) -> float | None:
    """Median of the milliseconds that ``model`` takes for one of ``pictures``, one at a time; None without any.

    From decoded pixels to boxes in the original image on the CPU: resizing, the network, suppression. Decoding the file
    is not in it. The first ``WARM_UP`` looks are not counted.
    """
    if not pictures:
        return None
    for number in range(WARM_UP):
        find(model, [pictures[number % len(pictures)]], data, options)
    times = []
    for picture in pictures:
        began = time.perf_counter()
        find(model, [picture], data, options)  # its result is on the CPU: nothing is left to wait for
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def device_name(device: torch.device) -> str:
    """What the device is called by those who make it: ``NVIDIA H100 80GB HBM3``, or the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{name}, {threads} thread{'s' * (threads > 1)}"
    return f"{name} ({device.type})"
