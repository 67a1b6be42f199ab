"""The stand-in for SAM or SAM 2 where weights are not available: `tiny` or `sam2_mini`, trained on textured shapes.

    python -m benchmarks.fewshot.base FOLDER [--encoder sam2_mini --image_size 128 --steps 3200 --device cpu]

The segmentation bundle trains encoder and decoder from random weights to segment five kinds of outlines
(`samora_monai.synthetic.shapes`) without prompts. The pictures contain no anatomy. By default the input is 112 or
128 pixels wide, a quarter of the work of 224; a larger network resizes SAM's weights as SAMed resizes Meta's 1024 ones,
SAM 2's fit every size. Writes FOLDER/base.pt.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fewshot import HERE, run_process
from benchmarks.fewshot.budget import BASES, FULL
from benchmarks.fewshot.milestones import model_at
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle
from samora_monai.synthetic.shapes import write_shapes

SETTINGS: dict[str, Any] = {"experts": [], "trainable": "all", "sam_checkpoint": "none"}
SETTINGS |= {"batch_size": 16, "warmup": 100, "epochs": 1, "val_interval": 1}
VOLUMES = 96  # of 24 pictures each


def make_base(
    folder: Path,
    steps: int,
    machine: Mapping[str, Any],
    encoder: str = "tiny",
    image_size: int | None = None,
    volumes: int = VOLUMES,
) -> Path:
    """Train the base unless its file exists.

    Args:
        folder: folder of the file and of its log.
        steps: batches of 16 pictures.
        machine: settings that do not change the result: `device`, `num_workers`.
        encoder: a key of `BASES`.
        image_size: side of the input in pixels; None is the encoder's in `BASES`.
        volumes: number of training volumes.

    Returns:
        the file of the base.
    """
    file = folder / "base.pt"
    if file.exists():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    length = {"milestones": [1], "train::trainer::epoch_length": steps, "lr_scheduler::max_iterations": steps}
    with tempfile.TemporaryDirectory(dir=folder, prefix="running_") as unfinished:
        shapes = Path(unfinished, "shapes")
        write_shapes(shapes, num_training=volumes)
        bundle = copy_bundle("samora_segmentation", Path(unfinished, "bundle"))
        network = {"encoder": encoder} | BASES[encoder] | ({"image_size": image_size} if image_size else {})
        settings = {"dataset_dir": shapes, **network, **SETTINGS, **length, **machine}
        command = bundle_command(bundle, "training", ["train.yaml", HERE / "milestones.yaml"], settings)
        print(f"base: {steps} steps on textured shapes", flush=True)
        usage = run_process(command, folder / "base.log", os.cpu_count() or 1)
        print(f"base: took {usage}", flush=True)
        os.replace(model_at(bundle / "models" / "model.pt", 1), file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=FULL.base_steps, help=f"default {FULL.base_steps}")
    parser.add_argument("--encoder", default="tiny", choices=list(BASES), help="default tiny")
    parser.add_argument("--image_size", type=int, help="side of the input; default 112, or 128 for sam2_mini")
    parser.add_argument("--device", help="default: a GPU if there is one")
    args = parser.parse_args()
    machine = {"device": args.device} if args.device else {}
    print(make_base(args.folder.absolute(), args.steps, machine, args.encoder, args.image_size))


if __name__ == "__main__":
    main()
