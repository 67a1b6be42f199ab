"""Timing of runs that take turns, and the report of their ratios."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from samora_monai.inference import AutocastInferer
from samora_monai.losses import SegmentationLoss
from samora_monai.networks import Segmenter

Run = Callable[[], object]


@dataclass
class Report:
    """Print a line per measurement and collect the missed targets."""

    missed: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        print(f"\n{text}\n{'':52}{'seconds':>9}{'ratio':>8}  target", flush=True)

    def line(self, name: str, seconds: float | None, ratio: float | None = None, target: str = "") -> None:
        """Print one line; `target` is a bound of `ratio`, e.g. `<= 2.2` or `>= 0.7`."""
        verdict = ""
        if target and ratio is not None:
            sign, bound = target.split()
            met = ratio <= float(bound) if sign == "<=" else ratio >= float(bound)
            verdict = f"  {target}  {'met' if met else 'MISSED'}"
            if not met:
                self.missed.append(name)
        left = f"{seconds:9.3f}" if seconds is not None else " " * 9
        right = f"{ratio:8.2f}" if ratio is not None else ""
        print(f"{name:52}{left}{right}{verdict}", flush=True)


class Times:
    """Seconds of several runs that take turns, after one turn of warm-up."""

    def __init__(self, runs: dict[str, Run], turns: int) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(turns + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn:
                    self.seconds[name].append(time.perf_counter() - start)

    def __getitem__(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def product(size: int, dtype: torch.dtype, device: str = "cpu") -> Run:
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return partial(torch.mm, a, b)


def training_step(net: Segmenter, x: Tensor, amp: bool = False) -> tuple[Run, Run]:
    """A forward pass that records gradients, and the whole training step; with `amp` under bfloat16 autocast."""
    net.train()
    loss, inferer = SegmentationLoss(), AutocastInferer(amp)
    label = torch.randint(0, 9, (len(x), 1, *x.shape[2:]), device=x.device).float()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(inferer(x, net), label).backward()
        optimizer.step()

    return partial(inferer, x, net), step


def own_peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
