"""Speed of SAM 2's networks: Hiera relative to its matrix products, and SAM 2 beside SAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.networks import build, encode, peak_memory
from benchmarks.timing import Report, Run, Times, product, training_step

Shape = tuple[int, ...]
BASES = (("sam2_tiny", 512), ("vit_b", 224), ("vit_b", 512))


class Products(TorchFunctionMode):
    """Record the shapes of the matrix products of linear layers, convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[Shape, Shape]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d):
            weight = args[1].flatten(1)
            self.shapes.append(((out.numel() // len(weight), weight.shape[1]), (weight.shape[1], len(weight))))
        elif func is F.scaled_dot_product_attention:
            (batch, heads, queries, dim), keys = args[0].shape, args[1].shape[2]
            self.shapes.append(((batch * heads, queries, dim), (batch * heads, dim, keys)))
            self.shapes.append(((batch * heads, queries, keys), (batch * heads, keys, dim)))
        return out

    def multiply_adds(self) -> int:
        return sum(prod(a) * b[-1] for a, b in self.shapes)

    def run(self) -> Run:
        """The products alone, of random matrices."""
        pairs = [(torch.randn(a), torch.randn(b)) for a, b in self.shapes]

        def products() -> None:
            for a, b in pairs:
                torch.matmul(a, b)

        return products


def hiera(report: Report, turns: int) -> None:
    for image_size, batch in ((224, 4), (512, 1)):
        report.title(f"sam2_tiny, plain encoder, {image_size}, batch {batch}; its matrix products alone and the whole")
        run = partial(
            encode, build("plain encoder", image_size, base="sam2_tiny"), torch.rand(batch, 3, *[image_size] * 2)
        )
        with Products() as products:
            run()
        size, work = 2048, products.multiply_adds()
        square = product(size, torch.float32)
        times = Times({"square": square, "products": products.run(), "encoder": run}, 2 * turns)
        report.line(f"matrix product, {2 * size**3 / times['square'] / 1e9:.0f} GFLOP/s", times["square"])
        report.line(f"its products, {work / 1e9:.1f} G multiply-adds", times["products"])
        report.line("encoder, share of its products", times["encoder"], times.ratio("products", "encoder"), ">= 0.7")
        share = times.ratio("square", "encoder") * work / size**3
        report.line("encoder, rate relative to the matrix product", None, share)


def bases(report: Report, turns: int) -> None:
    for system in ("one expert", "three experts, HL-Attn"):
        inference: dict[str, Run] = {}
        steps: dict[str, Run] = {}
        for base, size in BASES:
            x = torch.rand(1, 1, size, size)
            inference[f"{base}, {size}"] = torch.no_grad()(partial(build(system, size, base=base).eval(), x))
            steps[f"{base}, {size}"] = training_step(build(system, size, base=base), x)[1]
        first, *_ = inference
        for title, runs in (("forward", inference), ("training step", steps)):
            report.title(f"{system}, whole network, {title}, batch 1; the ratio is to {first}")
            times = Times(runs, turns)
            for name in runs:
                report.line(name, times[name], times.ratio(name, first))


def bases_memory(report: Report, _: int) -> None:
    for system in ("one expert", "three experts, HL-Attn"):
        for title, steps in (("forward", 0), ("training step", 3)):
            report.title(f"{system}, whole network, {title}, batch 1; the ratio is peak memory in GB")
            for base, size in BASES:
                report.line(f"{base}, {size}", None, peak_memory(system, base, size, batch=1, steps=steps))
