"""The pipeline on synthetic scans, in minutes on a CPU: SAMora beside SAMed, and a picture.

    python -m samora_monai.demo [--folder demo] [--decoder hierarchical]

Writes phantoms, two of which are labelled for training, and does what `samora train FOLDER/phantoms --output FOLDER
--compare` does. SAM's weights are not needed: the small base of the package replaces them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from monai.transforms import LoadImage

from samora_monai.data import case_name
from samora_monai.data.datalist import find_cases
from samora_monai.networks.config import DECODERS
from samora_monai.pictures.overlay import axial_slices, save_overlay_png, slice_with_most_classes
from samora_monai.pipeline.at_hand import STAND_IN
from samora_monai.pipeline.command import exit_codes, predict, train
from samora_monai.synthetic.phantoms import CLASS_NAMES, write_phantoms

SHAPE = (128, 128, 32)  # voxels of a phantom
LABELLED, VALIDATION, UNLABELLED = 2, 3, 4  # number of phantoms of each kind
STEPS = 240  # of the fine-tuning; fixed, so that every machine makes the same


def draw(run: Path) -> Path:
    """Segment the first validation scan, and draw the slice with the most organs beside its reference."""
    case = find_cases(run / "data").validation[0]
    results = run / "results"
    if predict(run, Path(case["image"]), results):
        raise SystemExit(1)
    picture = results / f"{case_name(case['image'])}.png"
    files = (case["image"], results / f"{case_name(case['image'])}_seg.nii.gz", case["label"])
    load = LoadImage(ensure_channel_first=True)
    image, pred, label = (axial_slices(load(file)) for file in files)
    z = slice_with_most_classes(label)
    save_overlay_png(picture, (image[z] + 125) / 400, pred[z].astype(int), label[z].astype(int), CLASS_NAMES)
    return picture


def main() -> None:
    """Run the demo from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="for scans, models, results; default: demo")
    parser.add_argument("--decoder", default="sam", choices=DECODERS, help="default: sam")
    args = parser.parse_args()
    start = time.monotonic()
    with exit_codes():
        scans = args.folder / "phantoms"
        if not (scans / "dataset.json").is_file():
            write_phantoms(scans, LABELLED, VALIDATION, UNLABELLED, SHAPE)
            print(f"wrote synthetic abdominal scans to {scans}", flush=True)
        train(scans, args.folder, compare=True, encoder=STAND_IN, decoder=args.decoder, steps=STEPS)
        picture = draw(args.folder)
    print(f"\npicture {picture}\ntook    {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
