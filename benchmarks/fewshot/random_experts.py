"""Random experts with the norms of trained ones: the control that separates pretraining from capacity.

    python -m benchmarks.fewshot.random_experts BASE ENCODER SEED TRAINED OUT [TRAINED OUT ...]

TRAINED is an expert file and OUT the file to write, one pair per level in the order image, patch, pixel. In every block
the random products B_q A_q and B_v A_v have the Frobenius norms of the trained ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from samora_monai.checkpoints import load_expert, load_sam, read_expert_settings, save_expert
from samora_monai.networks import LEVELS, Segmenter, build_segmenter
from samora_monai.networks.experts import Expert


@torch.no_grad()
def randomise_experts(net: Segmenter) -> None:
    """Replace every expert of `net` by a random one whose products have the same norms, from torch's generator."""
    for expert in (module for module in net.modules() if isinstance(module, Expert)):
        wanted = [delta.norm() for delta in expert.deltas()]
        expert.reset_parameters()
        bs = (expert.linear_b_q.weight, expert.linear_b_v.weight)
        for b in bs:
            nn.init.normal_(b)
        for b, norm, delta in zip(bs, wanted, expert.deltas(), strict=True):
            b *= norm / delta.norm()


def main() -> None:
    base, encoder, seed, *files = sys.argv[1:]
    torch.manual_seed(int(seed))
    for level, trained, out in zip(LEVELS, files[::2], files[1::2], strict=True):
        rank = read_expert_settings(trained, level).rank
        net = build_segmenter(encoder, experts=[level], rank=rank, train="experts")
        load_sam(net, Path(base))
        print(load_expert(net, trained, level))
        randomise_experts(net)
        save_expert(net, out, level, teacher="none: random, with the norms of the trained expert")


if __name__ == "__main__":
    main()
