"""Throughput of the training data path in slices per second, and the time of the first reading.

    python -m benchmarks.data [--scans 4 --workers 2]

`SliceDataset` reads synthetic scans of 512 x 512 x 80 (int16, compressed NIfTI) at two network sizes; batches of 32
then pass the random transforms of the bundle `samora_segmentation` and MONAI's `DataLoader`. Each worker is a process
with one thread. Slices are kept in memory, in memory in half precision, or in a cache folder.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.transforms import Compose
from scipy import ndimage

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data import LoadUnlabeledd, ScaleUnlabeledd, SliceDataset, find_unlabeled

BUNDLE = Path(__file__).parents[1] / "bundles" / "samora_segmentation"
SHAPE = (512, 512, 80)
BATCH = 32
TARGET = 100  # slices per second


def write_scans(folder: Path, count: int) -> None:
    """Write smooth fields with noise in the range of an abdominal CT, which compress about as well as a real one."""
    rng = np.random.default_rng(0)
    for scan in range(count):
        smooth = ndimage.zoom(rng.normal(size=(16, 16, 10)), [n / m for n, m in zip(SHAPE, (16, 16, 10), strict=True)])
        hu = 150 * smooth + rng.normal(0, 14, SHAPE)
        nib.save(nib.Nifti1Image(np.round(hu).astype(np.int16), np.diag([0.7, 0.7, 2.5, 1])), folder / f"{scan}.nii.gz")


def random_transforms() -> Compose:
    """The random transforms of the bundle's `train.yaml`, for images without a label."""
    train = ConfigParser.load_config_file(BUNDLE / "configs" / "train.yaml")["train"]
    transforms = [transform | {"keys": "image"} for transform in train["random_transforms"]]
    for transform in transforms:
        if isinstance(transform.get("mode"), list):  # one mode for the image, one for the label
            transform["mode"] = transform["mode"][0]
    config = {"transforms": transforms, "model": ModelSettings()}  # CT
    return Compose(ConfigParser(config).get_parsed_content("transforms"))


def measure(dataset: SliceDataset, workers: int, seconds: float) -> float:
    """Slices per second once the workers have started."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    for _ in loader:
        break
    slices, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for batch in loader:
            slices += len(batch["image"])
    return slices / (time.perf_counter() - start)


def processor_time(dataset: SliceDataset) -> float:
    """Processor seconds per slice, batching included, which depend little on other programs."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)
    start = time.process_time()
    for _ in loader:
        pass
    return (time.process_time() - start) / (len(loader) * BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15, help="minimum duration of each measurement (default 15)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transform = Compose([LoadUnlabeledd(), ScaleUnlabeledd("image")])
    augmentation = random_transforms()
    print(f"{args.scans} scans of {' x '.join(map(str, SHAPE))}, batches of {BATCH}, {args.workers} workers\n")
    print("| size | slices kept | reading, s per scan | MB per scan | core, ms per slice | slices/s | target |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        write_scans(scans, args.scans)
        data = find_unlabeled(scans, validation_fraction=0).training
        for size in (224, 512):
            cache: dict[str, Any] = {"half": True, "cache_dir": Path(folder, "cache"), "cache_key": "CT"}
            ways: dict[str, dict[str, Any]] = {
                "in memory": {},
                "in memory, half": {"half": True},
                "cache_dir, half, first run": cache,
                "cache_dir, half, later runs": cache,
            }
            for name, settings in ways.items():
                start = time.perf_counter()
                dataset = SliceDataset(data, transform, augmentation, size, **settings)
                reading = (time.perf_counter() - start) / len(data)
                core = 1000 * processor_time(dataset)
                rate = measure(dataset, args.workers, args.seconds)
                missed = "" if rate >= TARGET else ", **missed**"
                print(
                    f"| {size} | {name} | {reading:.3f} | {dataset.nbytes / len(data) / 1e6:.0f} | {core:.1f} "
                    f"| {rate:.0f} | {TARGET}{missed} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
