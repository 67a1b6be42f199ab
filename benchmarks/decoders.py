"""Mean Dice of both decoders on the validation scans, with the same base and steps and several seeds.

    python -m benchmarks.decoders DIR [--datalist dataset_4.json --modality MR --num_labeled 4 --epochs 6]

Every cell trains a small preset, `tiny` or another `--encoder`, from scratch and scores its last epoch, by the real
bundle in processes of its own. Cells that the CSV holds are not run again.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BUNDLE = Path(__file__).parents[1] / "bundles" / "samora_segmentation"
SYSTEMS = {
    "sam": ["--decoder", "sam"],
    "hierarchical": ["--decoder", "hierarchical"],
    "class-balanced": ["--decoder", "hierarchical", "--class_balanced_attention", "true"],
}
FROM_SCRATCH = "--sam_checkpoint none --trainable all --batch_size 8 --learning_rate 0.001 --warmup 20"


def measure(settings: list[str], data: list[str], epochs: int, seed: int) -> float:
    """The mean Dice of one training, from the bundle's own evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(BUNDLE, bundle)
        results = ["--bundle_root", str(bundle), "--output_dir", str(Path(folder) / "results")]
        train, evaluate = (str(bundle / "configs" / name) for name in ("train.yaml", "evaluate.yaml"))
        run = [sys.executable, "-m", "monai.bundle", "run"]
        steps = ["--epochs", str(epochs), "--val_interval", str(epochs), "--seed", str(seed)]
        training = [*run, "training", "--config_file", train, *FROM_SCRATCH.split(), *settings, *steps]
        subprocess.run([*training, *data, *results], check=True)
        subprocess.run([*run, "evaluating", "--config_file", f"['{train}','{evaluate}']", *data, *results], check=True)
        with open(Path(folder) / "results" / "summary.csv", newline="") as file:
            return float(next(row["dice"] for row in csv.DictReader(file) if row["name"] == "mean"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir")
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT")
    parser.add_argument("--num_labeled", type=int, default=2)
    parser.add_argument("--encoder", default="tiny")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--csv", type=Path, default=Path("decoders.csv"))
    args = parser.parse_args()
    data = ["--dataset_dir", args.dataset_dir, "--datalist", args.datalist, "--modality", args.modality]
    data += ["--num_labeled", str(args.num_labeled)]
    network = ["--encoder", args.encoder, "--image_size", str(args.image_size)]

    done: dict[tuple[str, int], float] = {}
    if args.csv.exists():
        with open(args.csv, newline="") as file:
            done = {(row[0], int(row[1])): float(row[2]) for row in csv.reader(file)}
    for seed in args.seeds:
        for name in args.systems:
            if (name, seed) not in done:
                done[name, seed] = measure([*network, *SYSTEMS[name]], data, args.epochs, seed)
                with open(args.csv, "a", newline="") as file:
                    csv.writer(file).writerow([name, seed, done[name, seed]])
    for name in args.systems:
        dice = [100 * done[name, seed] for seed in args.seeds]
        spread = statistics.stdev(dice) if len(dice) > 1 else float("nan")
        print(f"{name:16}  {statistics.mean(dice):.1f} +- {spread:.1f}  ({', '.join(f'{d:.1f}' for d in dice)})")


if __name__ == "__main__":
    main()
