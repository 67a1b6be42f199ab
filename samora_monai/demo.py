"""Run the whole method on synthetic scans, in minutes on a CPU.

Trains a base, teachers, and three experts on unlabelled scans; fine-tunes on two labelled scans, and evaluates beside
SAMed, which is trained from the same base with the same steps on the same scans; segments a scan and draws a picture.

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

# for minutes on a laptop; the defaults of the configs are for vit_b with SAM's weights
TINY = {"encoder": "tiny", "warmup": "20"}
BASE = {"image_size": "112", "batch_size": "16", "learning_rate": "0.001", "epochs": "8", "val_interval": "8"}
BASE |= {"experts": "[]", "trainable": "all", "sam_checkpoint": "none"}
TEACHER = {"teacher_network": "tiny", "batch_size": "32", "warmup": "20", "epochs": "12", "val_interval": "4"}
TEACHERS = {"image": {"view_size": "96", "learning_rate": "0.001"}, "patch": {"learning_rate": "0.002"}}
EXPERT = {"batch_size": "16", "learning_rate": "0.003", "epochs": "4"}
FINE_TUNING = {"num_labeled": "2", "batch_size": "8", "learning_rate": "0.002", "epochs": "16", "val_interval": "16"}

# idle threads sleep instead of spinning: several times faster on a machine with other load
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def run_bundle(bundle: Path, workflow: str, *configs: str, **settings: str | Path) -> None:
    """Run `python -m monai.bundle run` in a process of its own; exit if it fails."""
    files = [str(bundle / "configs" / name) for name in configs]
    options = {"config_file": files[0] if len(files) == 1 else str(files), "bundle_root": bundle, **settings}
    command = ["-m", "monai.bundle", "run", workflow]
    for key, value in options.items():
        command += [f"--{key}", str(value)]
    words = (f'"{word}"' if set(word) & set("'[") else word for word in command)
    print(f"\n$ python {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, *command], env=ENVIRONMENT, check=False)
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
        settings = TINY | EXPERT | ({"teacher_network": "tiny"} if level in TEACHERS else {"decoder_features": "8"})
        if level in TEACHERS:
            teacher = TEACHER | TEACHERS[level]
            run_bundle(bundle, "teacher", "train.yaml", "teacher.yaml", dataset_dir=scans, **teacher)
        run_bundle(bundle, "training", "train.yaml", dataset_dir=scans, sam_checkpoint=base, **settings)
        files[level] = bundle / "models" / "expert.pt"
    return files


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

    # as published, the experts stay frozen
    samora = {"experts": str(list(LEVELS)), "fusion": "attention", "trainable": "adapters"}
    samora |= {f"{level}_expert": str(file) for level, file in experts.items()}
    results, tables = folder / "results", {}
    for name, settings in {"SAMed": {}, "SAMora": samora}.items():
        bundle = copy_bundle("samora_segmentation", folder / name.lower())
        common = {"dataset_dir": scans, "output_dir": results / name.lower()}
        training = TINY | FINE_TUNING | settings | {"decoder": args.decoder}
        run_bundle(bundle, "training", "train.yaml", sam_checkpoint=base, **common, **training)
        run_bundle(bundle, "evaluating", "train.yaml", "evaluate.yaml", **common)
        with open(common["output_dir"] / "summary.csv", newline="", encoding="utf-8") as file:
            tables[name] = {row["name"]: float(row["dice"]) for row in csv.DictReader(file)}

    scan = min((scans / "imagesVal").iterdir())
    run_bundle(folder / "samora", "inference", "inference.json", dataset_dir=scan, output_dir=results)
    prediction = results / f"{case_name(scan)}_seg.nii.gz"
    picture = results / f"{case_name(scan)}.png"
    load = LoadImage(ensure_channel_first=True)
    image, pred, label = (axial_slices(load(file)) for file in (scan, prediction, scans / "labelsVal" / scan.name))
    z = slice_with_most_classes(label)
    save_overlay_png(picture, (image[z] + 125) / 400, pred[z].astype(int), label[z].astype(int), CLASS_NAMES)

    columns = [*CLASS_NAMES[1:], "mean"]
    print(f"\nDice, {FINE_TUNING['num_labeled']} labelled scans, equal steps from the same base")
    print("  ".join(["        ", *columns]))
    for name, table in tables.items():
        print("  ".join([f"{name:<8}", *(f"{table[column]:{len(column)}.3f}" for column in columns)]))
    print(f"\nprediction  {prediction}\npicture     {picture}\ntook        {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
