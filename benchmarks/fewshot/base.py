"""The stand-in for SAM or SAM 2 where weights are not available: `tiny` or `sam2_mini`, trained on imaginary creatures.

    python -m benchmarks.fewshot.base FOLDER [--encoder sam2_mini --steps 1200 --image_size 128 --device cpu]

The segmentation bundle trains encoder and decoder from random weights to segment the organs of
`samora_monai.synthetic.creatures` without prompts, first in small pictures, then in larger ones. No picture contains
real anatomy. Writes FOLDER/base.pt: float16, with SAM's four mask tokens. Without options this makes the file that the
package ships (samora_monai/weights/tiny.pt).
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fewshot import run_process
from benchmarks.fewshot.budget import BASES
from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle
from samora_monai.synthetic.creatures import write_creatures

SETTINGS: dict[str, Any] = {"experts": [], "trainable": "all", "batch_size": 16, "warmup": 100, "val_interval": 1}
SETTINGS["loss::upsample_logits"] = False  # at a quarter of the input: a third faster
VOLUMES = 240  # of 24 pictures each
SIDE = 160  # of a picture, in pixels
EPOCHS = 10  # validations of each part
MASK_TOKENS = 4  # of SAM; load_sam takes over no others


def make_base(
    folder: Path,
    steps: Sequence[int],
    machine: Mapping[str, Any],
    encoder: str = "tiny",
    sizes: Sequence[int] | None = None,
    volumes: int = VOLUMES,
) -> Path:
    """Train the base unless its file exists.

    Args:
        folder: folder of the file and of its logs.
        steps: batches of 16 pictures in each part of the training, multiples of 10.
        machine: settings that do not change the result: `device`, `num_workers`.
        encoder: a key of `BASES`.
        sizes: side of the input in each part, in pixels; None is the encoder's first in `BASES` for each.
        volumes: number of training volumes.

    Returns:
        the file of the base.
    """
    file = folder / "base.pt"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    sizes = sizes or BASES[encoder]["image_size"][: len(steps)]
    with tempfile.TemporaryDirectory(dir=folder, prefix="running_") as unfinished:
        pictures = Path(unfinished, "pictures")
        write_creatures(pictures, num_training=volumes, side=SIDE)
        start: Path | str = "none"
        for part, (number, size) in enumerate(zip(steps, sizes, strict=True), 1):
            bundle = copy_bundle("samora_segmentation", Path(unfinished, f"bundle_{part}"))
            length = {"epochs": EPOCHS, "train::trainer::epoch_length": number // EPOCHS}
            length |= {"lr_scheduler::max_iterations": number}
            network = {"encoder": encoder, "sam_checkpoint": start, "image_size": size}
            network["learning_rate"] = BASES[encoder]["learning_rate"]
            settings = {"dataset_dir": pictures, **network, **SETTINGS, **length, **machine}
            command = bundle_command(bundle, "training", ["train.yaml"], settings)
            print(f"base: {number} steps at {size} pixels", flush=True)
            print(f"base: took {run_process(command, folder / f'base_{size}.log', os.cpu_count() or 1)}", flush=True)
            start = bundle / "models" / "model.pt"
        write_checkpoint(for_shipping(torch.load(start, weights_only=True)), file)
    return file


def for_shipping(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base of a model in float16, with the mask tokens and hypernetworks of SAM's number."""
    kept = {}
    for key, value in state.items():
        per_class = re.search(r"output_hypernetworks_mlps\.(\d+)\.", key)
        if key in ("pixel_mean", "pixel_std") or (per_class and int(per_class[1]) >= MASK_TOKENS):
            continue
        if "mask_tokens" in key or "iou_prediction_head.layers.2" in key:
            value = value[:MASK_TOKENS]
        kept[key] = value.to(torch.float16).clone()
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", help="of each part; default: budget.py")
    parser.add_argument("--encoder", default="tiny", choices=list(BASES), help="default tiny")
    parser.add_argument("--image_size", type=int, nargs="+", help="side of the input in each part; default: budget.py")
    parser.add_argument("--device", help="default: a GPU if there is one")
    args = parser.parse_args()
    machine = {"device": args.device} if args.device else {}
    steps = args.steps or BASES[args.encoder]["steps"]
    print(make_base(args.folder.absolute(), steps, machine, args.encoder, args.image_size))


if __name__ == "__main__":
    main()
