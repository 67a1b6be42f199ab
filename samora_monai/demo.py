"""The main job end to end on synthetic scans: phantoms, training, evaluation, inference, a picture.

    python -m samora_monai.demo [--folder demo] [--epochs 4] [--decoder hierarchical]

It runs the real bundle through ``python -m monai.bundle run``, as a user would, and prints each command.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from monai.transforms import LoadImage

from samora_monai.data import case_name
from samora_monai.data.phantoms import CLASS_NAMES, write_phantoms
from samora_monai.engine.overlay import axial_slices, most_telling_slice, save_overlay_png
from samora_monai.networks.segmenter import DECODERS

BUNDLE = Path(__file__).parents[1] / "bundles" / "samora_segmentation"
# a tiny network from scratch: what a laptop without SAM's weights can do in two minutes
SETTINGS = {
    "encoder": "tiny",
    "sam_checkpoint": "none",
    "trainable": "all",
    "batch_size": "8",
    "learning_rate": "0.001",
    "warmup": "20",
    "val_interval": "2",
}

# threads that wait for a busy core sleep instead of spinning: several times faster where other programs run too
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def run_bundle(workflow: str, config: str, bundle: Path, **settings: str) -> None:
    """``python -m monai.bundle run`` in a process of its own; ends the demo if it fails."""
    arguments = ["run", workflow, "--config_file", config, "--bundle_root", str(bundle)]
    for key, value in settings.items():
        arguments += [f"--{key}", value]
    words = (f'"{word}"' if "'" in word else word for word in arguments)
    print(f"\n$ python -m monai.bundle {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "monai.bundle", *arguments], env=ENVIRONMENT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default="demo", help="where data, model and results go (default: demo)")
    parser.add_argument("--epochs", type=int, default=4, help="training epochs (default: 4)")
    parser.add_argument("--decoder", default="sam", choices=DECODERS, help="default: sam")
    args = parser.parse_args()
    start = time.monotonic()
    folder = Path(args.folder)
    data, bundle, results = folder / "phantoms", folder / "samora_segmentation", folder / "results"
    shutil.copytree(BUNDLE, bundle, dirs_exist_ok=True)  # a copy, so that the bundle itself stays as it is
    write_phantoms(data)
    print(f"wrote synthetic abdominal scans to {data}")

    configs = bundle / "configs"
    common = {"dataset_dir": str(data), "output_dir": str(results)}
    settings = {"epochs": str(args.epochs), "decoder": args.decoder, **common, **SETTINGS}
    run_bundle("training", str(configs / "train.yaml"), bundle, **settings)
    scan = sorted((data / "imagesVal").iterdir())[0]
    run_bundle("inference", str(configs / "inference.json"), bundle, dataset_dir=str(scan), output_dir=str(results))
    evaluation = f"['{configs / 'train.yaml'}','{configs / 'evaluate.yaml'}']"
    run_bundle("evaluating", evaluation, bundle, **common)

    prediction = results / f"{case_name(scan)}_seg.nii.gz"
    picture = results / f"{case_name(scan)}.png"
    files = (scan, prediction, data / "labelsVal" / scan.name)
    image, pred, label = (axial_slices(LoadImage(ensure_channel_first=True)(file)) for file in files)
    z = most_telling_slice(label)
    save_overlay_png(picture, (image[z] + 125) / 400, pred[z].astype(int), label[z].astype(int), CLASS_NAMES)
    print(f"\nprediction  {prediction}\npicture     {picture}\ntook        {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
