"""Dice of a trained model by the width of the smoothing across slices, without and with the largest component.

    python -m benchmarks.postprocessing BUNDLE DIR [--datalist dataset.json --smoothing 0 0.6 1 1.5 2.5]

The network segments each validation scan once; only what follows it differs between the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from torch import Tensor

from samora_monai.checkpoints import load_model, read_model_settings
from samora_monai.data import CheckCased, LoadCased, ScaleScand, find_cases
from samora_monai.data.slice_reader import neighbours
from samora_monai.inference.smoothing import keep_largest, smoothed
from samora_monai.metrics import dice
from samora_monai.networks import build_segmenter

KEYS = ("image", "label")
BATCH = 8  # slices


def labels_of(logits: Iterable[Tensor], width: float) -> Tensor:
    """Logits of the slices in their order, and the width of the smoothing in slices -> `[Z, X, Y]`."""
    return torch.cat([scores.argmax(1).to(torch.uint8) for scores in smoothed(logits, width)])


def mean_dice(predicted: Tensor, label: Tensor, num_classes: int) -> float:
    """Mean Dice of the classes that the label map has."""
    a, b = predicted.numpy(), label.numpy()
    found = [number for number in range(1, num_classes) if (b == number).any()]
    return float(np.mean([dice(a == number, b == number) for number in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, help="folder of a trained segmentation bundle")
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--smoothing", type=float, nargs="+", default=[0, 0.6, 1, 1.5, 2.5], help="mm")
    args = parser.parse_args()
    file = args.bundle / "models" / "model.pt"
    model = read_model_settings(file)
    net, axis, classes = build_segmenter(model.network).eval(), model.scaling.slice_axis, model.network.num_classes
    load_model(net, file)
    transforms = [LoadCased(KEYS), EnsureChannelFirstd(KEYS), CheckCased(KEYS, num_classes=classes)]
    transforms += [Orientationd(KEYS, axcodes="RAS", labels=None), ScaleScand("image", scaling=model.scaling)]
    read, found, spacings = Compose(transforms), [], []
    for case in find_cases(args.dataset_dir, args.datalist).validation:
        scan = read(dict(case))
        spacings.append(float(scan["image"].pixdim[axis]))
        slices, label = (scan[key].as_tensor()[0].movedim(axis, 0) for key in KEYS)
        channels = slices.float()[torch.from_numpy(neighbours(len(slices), model.network.context))]
        with torch.inference_mode():
            logits = [net(chunk) for chunk in channels.split(BATCH)]
        row = []
        for millimetres in args.smoothing:
            predicted = labels_of(logits, millimetres / spacings[-1])
            row.append(mean_dice(predicted, label, classes))
            keep_largest(predicted, range(1, classes))
            row.append(mean_dice(predicted, label, classes))
        found.append(row)
    table = np.array(found).reshape(len(found), len(args.smoothing), 2)
    print(f"{len(table)} scans, {np.mean(spacings):.3g} mm from slice to slice")
    print("smoothing, mm | Dice | worst change of a scan | with the largest component of each class")
    for i, millimetres in enumerate(args.smoothing):
        worst = (table[:, i, 0] - table[:, 0, 0]).min()
        print(f"{millimetres:g} | {table[:, i, 0].mean():.4f} | {worst:+.4f} | {table[:, i, 1].mean():.4f}")


if __name__ == "__main__":
    main()
