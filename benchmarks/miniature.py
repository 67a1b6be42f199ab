"""Small networks at equal CPU time: encoders and a U-Net from random weights, and the stand-in base of the package.

    python -m benchmarks.miniature DIR FOLDER [--datalist dataset.json --modality MR --minutes 4 --rows tiny sam2_mini]

From random weights all parameters are trained. The rows `STAND_IN_ROWS` show what the stand-in is worth: its decoder on
the frozen encoder (`stand_in`), the same on random weights (`random`), and SAMed (`stand_in_samed`).

Each row trains the segmentation bundle on the first half of the labelled scans of DIR and scores it on the second; the
validation scans are not used. The number of steps follows from the processor time of one step, which is measured first,
so that every row gets the same processor time whatever else runs on the machine. FOLDER/miniature.csv gets a line for
each row and seed; rows that it already has are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fewshot import HERE, run_process
from benchmarks.fewshot.cell import read_scores
from samora_monai.networks import PRESETS, build_segmenter
from samora_monai.pipeline.at_hand import STAND_IN, STAND_IN_FILE
from samora_monai.pipeline.bundle_process import bundle_command, copy_bundle

UNET = "unet"
COLUMNS = ["row", "data", "seed", "parameters", "image_size", "cpu_minutes", "steps", "step_cpu_seconds", "mean_dice"]
CANDIDATES: dict[str, dict[str, Any]] = {  # name -> sizes that differ from those of sam2_mini
    "windows_of_sam2": {"window_spec": (8, 4, 14, 7)},
    "deep_third_stage": {"stages": (1, 1, 6, 1), "global_att_blocks": (3, 4, 5, 6, 7)},
}
STAND_IN_ROWS: dict[str, dict[str, Any]] = {
    "stand_in": {"experts": [], "trainable": "decoder", "sam_checkpoint": STAND_IN_FILE, "learning_rate": 0.001},
    "random": {"experts": [], "trainable": "decoder", "sam_checkpoint": "none", "learning_rate": 0.001},
    "stand_in_samed": {"rank": 16, "sam_checkpoint": STAND_IN_FILE, "learning_rate": 0.002},
}


def split(dataset_dir: Path, datalist: str, folder: Path) -> Path:
    """Write a datalist that trains on the first half of the labelled scans and validates on the second."""
    content = json.loads((dataset_dir / datalist).read_text())
    labelled = [{part: str(dataset_dir / case[part]) for part in ("image", "label")} for case in content["training"]]
    half = len(labelled) // 2
    lists = {"training": labelled[:half], "validation": labelled[half:]}
    path = folder / "split.json"
    path.write_text(json.dumps({"labels": content["labels"], "modality": content.get("modality", {})} | lists))
    return path


def settings_of(row: str) -> tuple[list[Path | str], dict[str, Any]]:
    """Configs and settings of a row."""
    if row == UNET:
        return ["train.yaml", HERE / "unet.yaml"], {"learning_rate": 0.002}
    if row in STAND_IN_ROWS:
        return ["train.yaml"], {"encoder": STAND_IN} | STAND_IN_ROWS[row]
    encoder: Any = row
    if row in CANDIDATES:
        sizes = PRESETS["sam2_mini"] | CANDIDATES[row]
        encoder = {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
    settings = {"encoder": encoder, "experts": [], "trainable": "all", "sam_checkpoint": "none"}
    return ["train.yaml"], settings | {"learning_rate": 0.001 if row == "tiny" else 0.002}


def parameters_of(row: str, image_size: int, num_classes: int) -> int:
    """Number of parameters of a row's network."""
    if row == UNET:
        from benchmarks.fewshot.unet import StretchedUNet

        return sum(p.numel() for p in StretchedUNet(num_classes, image_size).parameters())
    encoder = settings_of(row)[1]["encoder"]
    return sum(p.numel() for p in build_segmenter(encoder, image_size, 1, num_classes, experts=()).parameters())


def run(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one row."""
    configs, own = settings_of(row)
    log = args.folder / "logs" / f"{row}_{args.dataset_dir.name}_{seed}.log"
    log.unlink(missing_ok=True)

    def train(bundle: Path, steps: int, datalist: Path) -> float:
        settings = {"dataset_dir": args.dataset_dir, "datalist": datalist, "modality": args.modality, "device": "cpu"}
        settings |= {"image_size": args.image_size, "batch_size": args.batch_size, "warmup": 50, "seed": seed, **own}
        settings |= {"epochs": 1, "val_interval": 1, "amp": False, "train::trainer::epoch_length": steps}
        settings["lr_scheduler::max_iterations"] = steps
        return run_process(bundle_command(bundle, "training", configs, settings), log, threads=1).cpu_seconds

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="running_") as name:
        folder = Path(name)
        datalist = split(args.dataset_dir, args.datalist, folder)
        few, many = (train(copy_bundle("samora_segmentation", folder / f"of_{n}"), n, datalist) for n in (5, 25))
        step = (many - few) / 20
        steps = round(60 * args.minutes / step)
        bundle = copy_bundle("samora_segmentation", folder / "bundle")
        train(bundle, steps, datalist)
        evaluation = {"dataset_dir": args.dataset_dir, "datalist": datalist, "device": "cpu", "output_dir": folder}
        evaluate = bundle_command(bundle, "evaluating", [*configs, "evaluate.yaml"], evaluation)
        run_process(evaluate, log, threads=1)
        scores = read_scores(folder / "summary.csv")
    classes = len(json.loads((args.dataset_dir / args.datalist).read_text())["labels"])
    size = {"parameters": parameters_of(row, args.image_size, classes), "image_size": args.image_size}
    cost = {"cpu_minutes": args.minutes, "steps": steps, "step_cpu_seconds": f"{step:.3f}"}
    return {"row": row, "data": args.dataset_dir.name, "seed": seed, **size, **cost, "mean_dice": scores["dice mean"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=4, help="processor time of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", default=["tiny", "sam2_mini", *CANDIDATES, UNET])
    args = parser.parse_args()
    args.dataset_dir, args.folder = args.dataset_dir.absolute(), args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "miniature.csv"
    done = set()
    if file.exists():
        with open(file, newline="", encoding="utf-8") as lines:
            done = {(line["row"], line["data"], line["seed"], line["cpu_minutes"]) for line in csv.DictReader(lines)}
    for seed in args.seeds:
        for row in args.rows:
            if (row, args.dataset_dir.name, str(seed), str(args.minutes)) in done:
                continue
            line = run(row, seed, args)
            with open(file, "a", newline="", encoding="utf-8") as lines:
                writer = csv.DictWriter(lines, COLUMNS)
                if not lines.tell():
                    writer.writeheader()
                writer.writerow(line)
            print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)


if __name__ == "__main__":
    main()
