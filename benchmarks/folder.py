"""Inference over a folder of scans by the real bundle: seconds for each scan, and peak memory.

    python -m benchmarks.folder [--encoder vit_b --image_sizes 224 512 --slices 100 --scans 1 3]

Each network is run by the command that the README shows, in a process of its own, over two folders of scans. The
difference between the two is what a scan costs, without the start; the memory of both tells whether it grows with the
folder. The weights are random: they change neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from samora_monai.checkpoints.settings import write_settings

from samora_monai.networks import LEVELS, build_segmenter

CONFIG = Path(__file__).parents[1] / "bundles" / "samora_segmentation" / "configs" / "inference.json"
SYSTEMS = {
    "SAMed": {"experts": ["task"], "fusion": None},
    "SAMora": {"experts": list(LEVELS), "fusion": "attention"},
}


def write_scans(folder: Path, number: int, slices: int) -> None:
    """`number` CT scans of 512 x 512 x `slices` voxels, noise in HU."""
    folder.mkdir()
    for i in range(number):
        voxels = np.random.default_rng(i).integers(-1000, 1000, (512, 512, slices)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 3, 1])), folder / f"scan_{i:03}.nii.gz")


def write_model(file: Path, encoder: str, image_size: int, system: str) -> None:
    """A model file as training writes it."""
    network = {"encoder": encoder, "image_size": image_size, **SYSTEMS[system]}
    torch.save(build_segmenter(**network, num_classes=9).state_dict(), file)
    defaults = json.loads(CONFIG.read_text())["trained"]
    settings = {key: value for key, value in defaults.items() if key not in ("_target_", "checkpoint")}
    write_settings(file, settings | network)


def segment(model: Path, scans: Path, output_dir: Path, threads: int) -> tuple[float, float]:
    """Wall seconds of the command, and its peak memory in MB."""
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
