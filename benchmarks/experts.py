"""Whether teachers and experts learn: their losses on held-out scans, before and after training.

    python -m benchmarks.experts DIR [--datalist dataset_4.json --modality MR --folder experts]
    python -m benchmarks.experts DIR --encoder sam2_mini --base base.pt [...]

Trains both teachers (`tiny`) and the three experts with the real bundles, each in a process of its own, and prints one
table for the teachers and one for the experts. Finished parts in the folder are not trained again, so that the same
command continues a stopped run. --image_size and --epochs shorten it.

Teachers: each slice of the held-out scans is matched with the most similar slice of the training scans (cosine
similarity of centred features); the error is the distance of their positions, in percent of a scan's length. Chance is
33 %. Experts: the loss on the held-out scans before training, after the first and the last epoch, and after the last
with the expert's deltas off. With --standardise_targets a constant vector has a loss of 1 on the training scans.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigWorkflow, create_workflow
from torch import Tensor, nn

from benchmarks.fewshot import run_process
from samora_monai.data import SliceDataset
from samora_monai.networks import LEVELS, PRESETS
from samora_monai.pipeline.at_hand import STAND_IN, STAND_IN_FILE
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle
from samora_monai.pipeline.record import Record
from samora_monai.pretraining import MAETeacher, SimCLRTeacher

TEACHERS: dict[str, dict[str, Any]] = {
    "image": {"epochs": 12, "batch_size": 64, "learning_rate": 0.001, "warmup": 50, "view_size": 96},
    "patch": {"epochs": 8, "batch_size": 64, "learning_rate": 0.002, "warmup": 50},
}
EXPERT: dict[str, Any] = {"batch_size": 32, "learning_rate": 0.002, "warmup": 100}
EXPERTS: dict[str, dict[str, Any]] = {
    "image": {"teacher_network": "tiny", "epochs": 12},
    "patch": {"teacher_network": "tiny", "epochs": 5},
    "pixel": {"decoder_features": 4, "epochs": 4},
}


def run(bundle: Path, workflow: str, configs: list[str], settings: dict[str, Any], log: Path) -> None:
    """Run a bundle, unless it was run with the same settings."""
    record = Record(log.with_suffix(".json"), {name: str(value) for name, value in settings.items()})
    if record.is_finished([log]):
        return
    log.unlink(missing_ok=True)  # of a run that was stopped
    print(f"{workflow} in {bundle}, see {log}", flush=True)
    run_process(bundle_command(bundle, workflow, configs, settings), log, os.cpu_count() or 1)
    record.finish()


def open_workflow(bundle: Path, config: str, settings: dict[str, Any]) -> ConfigWorkflow:
    """Set up the workflow of a run in this process, with its data and initial weights."""
    file = str(bundle / "configs" / config)
    strings = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    strings["validate::handlers"] = []  # the handlers write files
    workflow = create_workflow(
        config_file=file, workflow_type="train", logging_file=False, bundle_root=str(bundle), **strings
    )
    workflow.initialize()
    return workflow


@torch.no_grad()
def position_error(teacher: nn.Module, workflow: ConfigWorkflow) -> float:
    """Mean distance, in percent of a scan, of held-out slices from their nearest training slices by the teacher."""
    scans = workflow.parser.get_parsed_content("scans")
    transform = workflow.parser.get_parsed_content("train::preprocessing")

    def describe(items: tuple[dict[str, str], ...]) -> tuple[Tensor, Tensor]:
        features, positions = [], []
        for item in items:
            slices = SliceDataset([item], transform, image_size=224)
            images = torch.stack([slices[i]["image"] for i in range(len(slices))])
            answers = torch.cat([teacher(chunk) for chunk in images.split(16)])
            features.append(answers if answers.ndim == 2 else answers.mean(1))
            positions.append(torch.linspace(0, 100, len(slices)))
        return torch.cat(features), torch.cat(positions)

    teacher.eval()
    gallery, gallery_positions = describe(scans.training)
    queries, positions = describe(scans.validation)
    center = gallery.mean(0)
    nearest = (F.normalize(queries - center) @ F.normalize(gallery - center).T).argmax(1)
    return float((gallery_positions[nearest] - positions).abs().mean())


def held_out_loss(workflow: ConfigWorkflow) -> float:
    """The loss on the held-out scans with the present weights."""
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    evaluator.run()
    return float(evaluator.state.metrics["val_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir")
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT")
    parser.add_argument("--folder", type=Path, default=Path("experts"))
    parser.add_argument("--encoder", default=STAND_IN, choices=list(PRESETS), help=f"default {STAND_IN}")
    parser.add_argument("--base", type=Path, help=f"base of the encoder; default: the package's {STAND_IN}")
    parser.add_argument("--image_size", type=int, default=224, help="side of all inputs; default 224")
    parser.add_argument("--epochs", type=int, help="of each training; default: see the script")
    parser.add_argument(
        "--standardise_targets", action="store_true", help="as the pipeline does it for image and patch level"
    )
    parser.add_argument(
        "--experts_only", action="store_true", help="without the table of the teachers, which do not depend on the base"
    )
    parser.add_argument("--image_teacher", type=Path, help="a trained `tiny` one, which is then not trained here")
    parser.add_argument("--patch_teacher", type=Path, help="likewise")
    parser.add_argument("--levels", nargs="+", default=LEVELS, choices=LEVELS)
    args = parser.parse_args()
    if args.base is None and args.encoder != STAND_IN:
        parser.error(f"--encoder is {args.encoder}, but the base of the package is {STAND_IN}; give --base FILE")
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    base = args.base or STAND_IN_FILE
    data = {"dataset_dir": args.dataset_dir, "datalist": args.datalist, "modality": args.modality}
    data["cache_dir"] = str(folder / "cache")
    common = data | {"image_size": args.image_size}
    length = {"epochs": args.epochs} if args.epochs else {}

    teachers, experts = [], []
    for level in args.levels:
        bundle = folder / level
        if not bundle.exists():
            copy_bundle(f"samora_{level}_expert", bundle)
        settings = common | EXPERT | EXPERTS[level] | length
        settings |= {"encoder": args.encoder, "sam_checkpoint": base.absolute()}
        if level != "pixel":
            settings |= {"standardise_targets": args.standardise_targets}
            if trained := {"image": args.image_teacher, "patch": args.patch_teacher}[level]:
                settings |= {"teacher_checkpoint": trained.absolute()}
            else:
                teaching = common | {"teacher_network": "tiny"} | TEACHERS[level] | length
                run(bundle, "teacher", ["train.yaml", "teacher.yaml"], teaching, folder / f"{level}_teacher.log")
        run(bundle, "training", ["train.yaml"], settings, folder / f"{level}.log")
        losses = [float(x) for x in re.findall(r"^validation loss (\S+)", (folder / f"{level}.log").read_text(), re.M)]

        workflow = open_workflow(bundle, "train.yaml", settings)
        student = workflow.parser.get_parsed_content("network_def")
        before = held_out_loss(workflow)
        state = torch.load(bundle / "eval" / "last.pt", weights_only=True)["model"]["state_dict"]
        student.load_state_dict(student.state_dict() | state)
        last = held_out_loss(workflow)
        with workflow.parser.get_parsed_content("segmenter").image_encoder.without_experts():
            off = held_out_loss(workflow)
        experts.append((level, before, losses[0], last, 100 * (1 - last / losses[0]), off, 100 * (off / last - 1)))
        if level != "pixel" and not args.experts_only:
            torch.manual_seed(0)
            random = SimCLRTeacher("tiny") if level == "image" else MAETeacher("tiny")
            teacher = workflow.parser.get_parsed_content("teacher_def")
            teachers.append((level, position_error(random, workflow), position_error(teacher, workflow)))

    if teachers:
        print("\n| teacher | position error, random, % | position error, trained, % |\n|---|---|---|")
    for name, before, after in teachers:
        print(f"| {name} | {before:.1f} | {after:.1f} |")
    print("\n| expert | untrained | first epoch | last epoch | reduced by | last, expert off | higher by |")
    print("|---|---|---|---|---|---|---|")
    for level, before, first, last, fall, off, rise in experts:
        print(f"| {level} | {before:.4g} | {first:.4g} | {last:.4g} | {fall:.0f} % | {off:.4g} | {rise:.0f} % |")


if __name__ == "__main__":
    main()
