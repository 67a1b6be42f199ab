"""The networks that are measured, with random weights, and the peak memory of a process that runs one.

python -m benchmarks.networks "one expert" --base sam2_tiny --image_size 512 --batch 1    # prints GB
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import own_peak_memory, training_step
from samora_monai.networks import LEVELS, PRESETS, Segmenter, build_segmenter

BASES = ("vit_b", "sam2_tiny")
SYSTEMS: dict[str, dict[str, Any]] = {
    "plain encoder": {"experts": ()},
    "one expert": {"experts": ("task",)},
    "three experts, HL-Attn": {"experts": LEVELS, "fusion": "attention"},
    "three experts, HL-Attn D/4": {"experts": LEVELS, "fusion": "attention", "fusion_width": "D/4"},
    "three experts, HL-Attn on blocks": {"experts": LEVELS, "fusion": "block"},
    "three experts, HL-Attn D/4 on blocks": {"experts": LEVELS, "fusion": "block", "fusion_width": "D/4"},
}


def build(system: str, image_size: int, device: str = "cpu", base: str = "vit_b", **more: Any) -> Segmenter:
    """A network with random weights in place of the zero-initialised ones too; `more` options of `build_segmenter`."""
    torch.manual_seed(0)
    options = {
        name: PRESETS[base]["embed_dim"] // 4 if value == "D/4" else value for name, value in SYSTEMS[system].items()
    }
    net = build_segmenter(base, image_size=image_size, num_classes=9, **options, **more)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return net.to(device)


def encode(net: Segmenter, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.image_encoder(x)


def peak_memory(system: str, base: str = "vit_b", image_size: int = 224, batch: int = 4, steps: int = 3) -> float:
    """Peak resident memory, in GB, of a process that takes training steps; without any, three forward passes."""
    values = {"base": base, "image_size": image_size, "batch": batch, "steps": steps}
    options = [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "benchmarks.networks", system, *options, f"--threads={torch.get_num_threads()}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--base", choices=BASES, default="vit_b")
    for name, default in (("image_size", 224), ("batch", 4), ("steps", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = build(args.system, args.image_size, base=args.base)
    x = torch.rand(args.batch, 1, args.image_size, args.image_size)
    run = training_step(net, x)[1] if args.steps else torch.no_grad()(partial(net.eval(), x))
    for _ in range(args.steps or 3):
        run()
    print(own_peak_memory())


if __name__ == "__main__":
    main()
