"""Inference over a folder of scans by the real bundle: seconds per scan, and peak memory.

    python -m benchmarks.folder [--encoder vit_b --image_sizes 224 512 --slices 100 --scans 1 3]

The command of the README runs each network over two folders of scans, in a process of its own. The difference in time
is the cost of a scan without the start; the difference in memory shows whether it grows with the folder. The weights
are random, which changes neither.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from samora_monai.checkpoints.files import write_checkpoint
from samora_monai.checkpoints.model_settings import ModelSettings, write_model_settings
from samora_monai.networks import LEVELS, build_segmenter

CONFIG = Path(__file__).parents[1] / "bundles" / "samora_segmentation" / "configs" / "inference.json"
SYSTEMS = {
    "SAMed": {"experts": ["task"]},
    "SAMora": {"experts": list(LEVELS), "fusion": "attention"},
}


def write_scans(folder: Path, number: int, slices: int, side: int = 512) -> None:
    """Write `number` CT scans of `side` x `side` x `slices` voxels of noise in HU."""
    folder.mkdir()
    for i in range(number):
        voxels = np.random.default_rng(i).integers(-1000, 1000, (side, side, slices)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 3, 1])), folder / f"scan_{i:03}.nii.gz")


def write_model(file: Path, encoder: str, image_size: int, system: str) -> None:
    """Write a model with random weights and the default classes, as training does."""
    settings = ModelSettings().changed(encoder=encoder, image_size=image_size, **SYSTEMS[system])
    write_checkpoint(build_segmenter(settings.network).state_dict(), file)
    write_model_settings(file, settings)


def segment(model: Path, scans: Path, output_dir: Path, threads: int) -> tuple[float, float]:
    """Run the command; wall time in seconds and peak memory in MB."""
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", str(CONFIG)]
    command += ["--checkpoint", str(model), "--dataset_dir", str(scans), "--output_dir", str(output_dir)]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"error: inference ended with code {code}")
    return time.monotonic() - start, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", default="vit_b")
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 512])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--scans", type=int, nargs=2, default=[1, 3], help="in the smaller and in the larger folder")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    few, many = args.scans
    print("network              s per scan  start, s  memory, MB:" + f"{few:>3} scans{many:>6} scans")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in (few, many):
            write_scans(folder / f"scans_{number}", number, args.slices)
        for system in args.systems:
            for image_size in args.image_sizes:
                model = folder / "model.pt"
                write_model(model, args.encoder, image_size, system)
                times, memory = zip(
                    *(
                        segment(model, folder / f"scans_{n}", folder / f"{system}_{image_size}_{n}", args.threads)
                        for n in (few, many)
                    ),
                    strict=True,
                )
                scan = (times[1] - times[0]) / (many - few)
                title = f"{system}, {args.encoder}, {image_size}"
                print(
                    f"{title:20} {scan:11.1f} {times[0] - few * scan:9.1f} {memory[0]:20.0f} {memory[1]:11.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
