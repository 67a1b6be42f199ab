"""Rehearse `samora train` with SAM's weights and public teachers: every stage, for a few steps, without these files.

    python -m benchmarks.rehearsal OUT [--steps 3 --batch_size 2 --image_size 224 --device cpu]

Files of the layouts and sizes of `sam_vit_b_01ec64.pth`, `r50_2x_sk1.pth` and `mae_pretrain_vit_large_full.pth`, but
with random values, are written where the pipeline finds the public ones, so that plan and stages are those of a lab
that has them; phantoms take the place of scans. Only two things count: that every stage runs, and what a step takes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from samora_monai.checkpoints.sam import base_keys
from samora_monai.download import CHECKPOINTS
from samora_monai.networks import build_segmenter
from samora_monai.pipeline.at_hand import TEACHERS
from samora_monai.pipeline.command import plan, train
from samora_monai.pipeline.folders import PLAN
from samora_monai.pipeline.plan import TRAININGS
from samora_monai.pipeline.planning.plan_file import write_plan
from samora_monai.pretraining import MAETeacher, SimCLRTeacher
from samora_monai.synthetic.phantoms import write_phantoms
from tests.pretraining.test_simclr import public_file

BASE = "vit_b"
SHAPE = (96, 96, 8)  # voxels of a phantom


def write_weights(folder: Path) -> None:
    """Write a file of each public layout, 2.4 GB in all; those that are there are kept."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    sam = folder / CHECKPOINTS[BASE].file
    if not sam.is_file():
        net = build_segmenter(BASE, image_size=1024, in_channels=3, num_classes=4, experts=())
        torch.save({key: net.state_dict()[key] for key in base_keys(net)}, sam)
    if not (folder / TEACHERS["image"]).is_file():
        torch.save(public_file(SimCLRTeacher("r50_2x_sk1"), (3, 4, 6, 3)), folder / TEACHERS["image"])
    if not (folder / TEACHERS["patch"]).is_file():
        torch.save({"model": MAETeacher("vit_l").state_dict()}, folder / TEACHERS["patch"])


def write_short_plan(scans: Path, run: Path, args: argparse.Namespace) -> None:
    """Make the plan of the pipeline, and shorten it as a person would who edits it."""
    made = plan(scans, run, encoder=BASE, steps=8, device=args.device, jobs=1)
    short = {"steps": args.steps, "epochs": 1, "val_interval": 1, "batch_size": args.batch_size, "warmup": 0}
    stages = {name: {**stage, **(short if name in TRAININGS else {})} for name, stage in made.stages.items()}
    network = {**made.network, "image_size": args.image_size}
    write_plan(replace(made, stages=stages, network=network), run / PLAN)


def step_seconds(folder: Path) -> float:
    """Median time between two steps of a training, by the events that it has written in `folder`."""
    events = EventAccumulator(str(folder)).Reload().Scalars("train_loss")
    return median(after.wall_time - before.wall_time for before, after in pairwise(events))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of all files, 12 GB")
    parser.add_argument("--steps", type=int, default=3, help="of each training, at least 2")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    scans, run = args.out / "scans", args.out / "run"
    if not (run / PLAN).is_file():
        write_weights(run)
        write_phantoms(scans, 1, 1, 1, SHAPE)
        write_short_plan(scans, run, args)
    train(scans, run)
    print(f"\nimages of {args.image_size}, {args.batch_size} slices a step, on {args.device}")
    print("stage | s a step | s in all | peak memory, GB")
    for file in sorted((run / "records").glob("*.json"), key=lambda file: file.stat().st_mtime):
        facts, name = json.loads(file.read_text()), file.stem
        if "seconds" in facts:
            folder = run / ("samora" if name == "fine_tuning" else f"bundles/{name}") / "eval"
            step = f"{step_seconds(folder):.1f}" if name in TRAININGS else ""
            print(f"{name} | {step} | {facts['seconds']:.0f} | {facts['memory_mb'] / 1000:.1f}")


if __name__ == "__main__":
    main()
