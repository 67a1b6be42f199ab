"""Timing of runs that take turns, their multiply-adds, and the report of their ratios."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samora_monai.inference import AutocastInferer
from samora_monai.losses import SegmentationLoss
from samora_monai.networks import Segmenter
from samora_monai.networks.rel_pos_attention import relative_rows

Run = Callable[[], object]
ATTENTION = "samora_monai.networks.image_encoder.rel_pos_attention"


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


def multiply_adds(run: Run) -> int:
    """Count the multiply-adds of `run`, with attention as in SAM's code."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), patch(ATTENTION, explicit_attention):
        run()
    return counter.get_total_flops() // 2


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, query_grid: tuple[int, int]
) -> Tensor:
    """The form that `rel_pos_attention` replaces: SAM's softmax over an N x N matrix of logits."""
    size = int(k.shape[2] ** 0.5)
    grid = q.unflatten(2, query_grid)
    rel_h = torch.einsum("bnyxc,ykc->bnyxk", grid, relative_rows(rel_pos_h, size)[: query_grid[0]])
    rel_w = torch.einsum("bnyxc,xkc->bnyxk", grid, relative_rows(rel_pos_w, size)[: query_grid[1]])
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = (logits.view(*rel_h.shape, size) + rel_h[..., :, None] + rel_w[..., None, :]).view_as(logits)
    return logits.softmax(-1) @ v


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
