"""A training step of SAMora relative to SAMed's: HL-Attn in all blocks, or in some, and its width."""

from __future__ import annotations

import torch

from benchmarks.networks import build
from benchmarks.timing import Report, Times, multiply_adds, training_step
from samora_monai.networks.config import FUSION_BLOCKS

BASES = ("tiny", "vit_b")
SYSTEMS = {"full width": "three experts, HL-Attn", "D/4": "three experts, HL-Attn D/4"}
TRAINS = {"experts trained": "adapters+experts", "experts frozen": "adapters"}
TARGETS = {  # the published setting, and the cheapest one
    ("full width", "all", "experts frozen"): "<= 2.2",
    ("D/4", "last_third", "experts trained"): "<= 1.4",
}


def fusion_blocks(report: Report, turns: int) -> None:
    """Each system takes turns with SAMed alone, so that two networks at a time are in memory."""
    x = torch.rand(4, 1, 224, 224)
    for base in BASES:
        report.title(f"{base}, training step, 224, batch 4; the ratio is to SAMed's, then the same in multiply-adds")
        _, samed = training_step(build("one expert", 224, base=base), x)
        for width, system in SYSTEMS.items():
            for experts, train in TRAINS.items():
                for blocks in FUSION_BLOCKS:
                    net = build(system, 224, base=base, fusion_blocks=blocks, train=train)
                    _, samora = training_step(net, x)
                    times = Times({"samed": samed, "samora": samora}, turns)
                    target = TARGETS.get((width, blocks, experts), "")
                    name = f"HL-Attn {width}, {blocks}, {experts}"
                    report.line(name, times["samora"], times.ratio("samora", "samed"), target)
                    report.line("  counted", None, multiply_adds(samora) / multiply_adds(samed))
