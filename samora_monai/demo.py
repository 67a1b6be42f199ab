"""Run the whole method on synthetic scans, in minutes on a CPU.

A base; teachers; three experts from unlabelled scans; fine-tuning on two labelled scans; evaluation beside SAMed, which
is trained from the same base with the same steps on the same scans; inference and a picture.

    python -m samora_monai.demo [--folder demo] [--decoder hierarchical]

Each step runs one of the bundles through `python -m monai.bundle run`, as a user does, and prints its command. SAM's
weights are not needed: the preset `tiny`, trained on images of textured shapes, replaces SAM.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from monai.transforms import LoadImage

from samora_monai.bundles import bundle_path
from samora_monai.data import case_name
from samora_monai.networks.config import DECODERS
from samora_monai.networks.experts import LEVELS
from samora_monai.pictures.overlay import axial_slices, save_overlay_png, slice_with_most_classes
from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms
from samora_monai.synthetic.shapes import write_shapes

# sized for minutes on a laptop; the defaults of the configs are for vit_b with SAM's weights
TINY = {"encoder": "tiny", "warmup": "20"}
BASE = {"image_size": "112", "batch_size": "16", "learning_rate": "0.001", "epochs": "8", "val_interval": "8"}
BASE |= {"experts": "[]", "trainable": "all", "sam_checkpoint": "none"}
TEACHER = {"teacher_network": "tiny", "batch_size": "32", "warmup": "20", "epochs": "12", "val_interval": "4"}
IMAGE_TEACHER = {"view_size": "96", "learning_rate": "0.001"}
PATCH_TEACHER = {"learning_rate": "0.002"}
EXPERT = {"batch_size": "16", "learning_rate": "0.003", "epochs": "4"}
FINE_TUNING = {"num_labeled": "2", "batch_size": "8", "learning_rate": "0.002", "epochs": "16", "val_interval": "16"}

# idle threads sleep instead of spinning: several times faster on a machine with other load
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def run_bundle(bundle: Path, workflow: str, *configs: str, **settings: str | Path) -> None:
    """Run `python -m monai.bundle run` in a process of its own; exit if it fails."""
    files = [str(bundle / "configs" / name) for name in configs]
    config_file = files[0] if len(files) == 1 else "[" + ",".join(f"'{file}'" for file in files) + "]"
    arguments = ["run", workflow, "--config_file", config_file, "--bundle_root", str(bundle)]
    for key, value in settings.items():
        arguments += [f"--{key}", str(value)]
    words = (f'"{word}"' if set(word) & set("'[") else word for word in arguments)
    print(f"\n$ python -m monai.bundle {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "monai.bundle", *arguments], env=ENVIRONMENT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle to `folder`, where it is run, so that the original stays unchanged."""
    return Path(shutil.copytree(bundle_path(name), folder, dirs_exist_ok=True))


def make_base(folder: Path) -> Path:
    """Train the network that replaces SAM, on images of textured shapes, and return its file."""
    write_shapes(folder / "shapes")
    bundle = copy_bundle("samora_segmentation", folder / "base")
    run_bundle(bundle, "training", "train.yaml", dataset_dir=folder / "shapes", **TINY, **BASE)
    return bundle / "models" / "model.pt"


def make_experts(folder: Path, base: Path, scans: Path) -> dict[str, Path]:
    """Train the expert of each level on unlabelled scans, and return their files by level."""
    files = {}
    for level in LEVELS:
        bundle = copy_bundle(f"samora_{level}_expert", folder / f"samora_{level}_expert")
        network = {"decoder_features": "8"}
        if level != "pixel":
            settings = TEACHER | (IMAGE_TEACHER if level == "image" else PATCH_TEACHER)
            run_bundle(bundle, "teacher", "train.yaml", "teacher.yaml", dataset_dir=scans, **settings)
            network = {"teacher_network": "tiny"}
        run_bundle(
            bundle, "training", "train.yaml", dataset_dir=scans, sam_checkpoint=base, **network, **TINY, **EXPERT
        )
        files[level] = bundle / "models" / "expert.pt"
    return files


def mean_dice(results: Path) -> dict[str, float]:
    """Read the Dice of each class and their mean from the table of an evaluation."""
    with open(results / "summary.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="demo", help="folder for data, models and results (default: demo)")
    parser.add_argument("--decoder", default="sam", choices=DECODERS, help="default: sam")
    args = parser.parse_args()
    start = time.monotonic()
    folder = Path(args.folder)
    scans = folder / "phantoms"
    write_phantoms(scans)
    print(f"wrote synthetic abdominal scans to {scans}")
    base = make_base(folder)
    experts = make_experts(folder, base, scans)

    systems = {
        "SAMed": {},
        "SAMora": {
            "experts": str(list(LEVELS)),
            "fusion": "attention",
            "trainable": "adapters",  # as published: the experts stay frozen
            **{f"{level}_expert": str(file) for level, file in experts.items()},
        },
    }
    tables = {}
    for name, settings in systems.items():
        bundle = copy_bundle("samora_segmentation", folder / name.lower())
        common = {"dataset_dir": scans, "output_dir": folder / "results" / name.lower()}
        training = TINY | FINE_TUNING | settings | {"decoder": args.decoder}
        run_bundle(bundle, "training", "train.yaml", sam_checkpoint=base, **common, **training)
        run_bundle(bundle, "evaluating", "train.yaml", "evaluate.yaml", **common)
        tables[name] = mean_dice(folder / "results" / name.lower())

    bundle, results = folder / "samora", folder / "results"
    scan = sorted((scans / "imagesVal").iterdir())[0]
    run_bundle(bundle, "inference", "inference.json", dataset_dir=scan, output_dir=results)
    prediction = results / f"{case_name(scan)}_seg.nii.gz"
    picture = results / f"{case_name(scan)}.png"
    files = (scan, prediction, scans / "labelsVal" / scan.name)
    image, pred, label = (axial_slices(LoadImage(ensure_channel_first=True)(file)) for file in files)
    z = slice_with_most_classes(label)
    save_overlay_png(picture, (image[z] + 125) / 400, pred[z].astype(int), label[z].astype(int), CLASS_NAMES)

    columns = [*CLASS_NAMES[1:], "mean"]
    print(f"\nDice, {FINE_TUNING['num_labeled']} labelled scans, equal steps from the same base")
    print("  ".join(["        ", *columns]))
    for name, table in tables.items():
        print("  ".join([f"{name:<8}", *(f"{table[column]:.3f}".rjust(len(column)) for column in columns)]))
    print(f"\nprediction  {prediction}\npicture     {picture}\ntook        {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
