"""What clicks and boxes are worth: Dice of slices and of whole scans, and processor time.

    python -m benchmarks.clicks.measure DIR [--datalist FILE --modality MR --slices 5]

Each labelled scan of DIR gives some slices, evenly spaced over those that show the object. The first click is the
point deepest inside the object; each further one is deepest in the largest part that is wrong, inside or outside. A box
is the label's own. `3d` is a box in the middle slice and its mask in all others, slice by slice, until the object
ends.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from scipy import ndimage

from samora_monai.checkpoints import load_adapter, load_sam
from samora_monai.data import LoadUnlabeledd, ScaleUnlabeledd, ScanScaling, find_cases
from samora_monai.download import SHIPPED
from samora_monai.inference.clicks import PromptedSegmenter, SlicePrompts, box_of
from samora_monai.metrics import dice
from samora_monai.networks import build_segmenter
from samora_monai.pipeline.at_hand import STAND_IN, find_base

CLICKS = (1, 3, 5)


def deepest(mask: np.ndarray) -> tuple[int, int]:
    """The pixel deepest inside the largest part of a mask."""
    parts, _ = ndimage.label(mask)
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def clicked(segmenter: PromptedSegmenter, image: np.ndarray, target: np.ndarray, name: object) -> Iterator[float]:
    """Dice after each click."""
    positive, negative, answer = [], [], np.zeros_like(target)
    for _ in range(max(CLICKS)):
        wrong = answer != target
        point = deepest(wrong if wrong.any() else target)
        (positive if target[point] else negative).append(point)
        answer = segmenter.segment_slice(image, SlicePrompts(tuple(positive), tuple(negative)), name)
        yield dice(answer, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT")
    parser.add_argument("--encoder", default=STAND_IN)
    parser.add_argument("--sam_checkpoint", help="weights of the base (default: the one at hand)")
    parser.add_argument("--prompts", help="prompt encoder and decoder for the stand-in (default: the shipped ones)")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--slices", type=int, default=5, help="of each object and scan")
    args = parser.parse_args()
    base = find_base(args.encoder, args.sam_checkpoint, Path())
    net = build_segmenter(base.encoder, args.image_size, num_classes=4, experts=()).eval()
    load_sam(net, base.checkpoint)
    if base.encoder == STAND_IN:
        load_adapter(net, args.prompts or SHIPPED / "tiny_prompts.pt")
    segmenter = PromptedSegmenter(net, remembered=200)
    cases = find_cases(args.folder, args.datalist)
    load, scale = LoadUnlabeledd(), ScaleUnlabeledd("image", ScanScaling(args.modality))
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    first, later = [], []
    for case in (*cases.validation, *cases.training)[: args.scans]:
        volume = scale({"image": load({"image": case["image"]})["image"]})["image"][0].numpy()
        label = load({"image": case["label"]})["image"][0].numpy().round().astype(int)
        for value in range(1, label.max() + 1):
            name = cases.class_names[value] if cases.class_names else str(value)
            shown = np.flatnonzero((label == value).any((0, 1)))
            if not len(shown):
                continue
            for index in np.unique(shown[((np.arange(args.slices) + 0.5) * len(shown) / args.slices).astype(int)]):
                image, target = volume[..., index], label[..., index] == value
                began = time.process_time()
                segmenter.segment_slice(image, SlicePrompts((deepest(target),)), (case["image"], index))
                first.append(time.process_time() - began)
                values = list(clicked(segmenter, image, target, (case["image"], index)))
                for count in CLICKS:
                    found[name][f"{count} clicks"].append(values[count - 1])
                began = time.process_time()
                answer = segmenter.segment_slice(image, SlicePrompts(box=box_of(target)), (case["image"], index))
                later.append(time.process_time() - began)
                found[name]["box"].append(dice(answer, target))
            middle = shown[len(shown) // 2]
            box = SlicePrompts(box=box_of(label[..., middle] == value))
            whole = segmenter.segment(volume, {middle: box}, case["image"], volume.shape[-1])
            found[name]["3d"].append(dice(whole > 0, label == value))
        print(f"{Path(case['image']).name}", flush=True)
    kinds = [*(f"{count} clicks" for count in CLICKS), "box", "3d"]
    print("object".ljust(16) + "".join(kind.rjust(10) for kind in kinds))
    for name, values in found.items():
        print(name.ljust(16) + "".join(f"{fmean(values[kind]):10.3f}" for kind in kinds))
    print(
        f"seconds of processor time, median: first click in a slice {median(first):.3f}, later {median(later):.3f}",
        end="",
    )
    print(f" ({torch.get_num_threads()} threads, {base.encoder}, {args.image_size} pixels)")


if __name__ == "__main__":
    main()
