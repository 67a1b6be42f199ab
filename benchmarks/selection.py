"""Whether the scans that `samora select` chooses are better training scans than random ones.

    python -m benchmarks.selection LA OUT --datalist dataset_8.json --modality MR --sam_checkpoint FILE --encoder NAME

All labelled scans of the datalist are the pool. Four of them train a small 2-D U-Net in memory, the others test it: 15
random draws, the selection from the whole pool, and the selections from random parts of the pool, which show its
spread. Each training has the same seed. As every draw leaves other scans for the test, the Dice of a draw is corrected
for their difficulty: the mean over its test scans of Dice minus the mean Dice of that scan over the random draws, plus
the mean over all scans. OUT/draws.csv keeps the draws, which are not repeated.

With `--strategies`, the strategies of MONAI Label's Next Sample instead, which hand out one scan after the other:

    python -m benchmarks.selection LA OUT ... --strategies 4 6 8

the Dice after so many labels, beside as many random draws of the same size. For `uncertain` and `mixed` a network is
trained after each of these numbers, and scores the scans without a label; the first scans are representative ones.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import EnsureChannelFirstd, Orientationd
from torch import Tensor, nn

from samora_monai.checkpoints import load_sam
from samora_monai.data import CheckCased, LoadCased, LoadUnlabeledd, ScaleScand, ScanScaling, SliceDataset, find_cases
from samora_monai.networks import build_segmenter
from samora_monai.selection import Anatomy, NextScan, Pool, ScanFeatures, choose, embed, scan_features

SIZE = 64  # pixels of the slices, which are stretched to squares
BATCH = 16
RATE = 3e-3
Slices = tuple[Tensor, Tensor]  # images [Z, 1, S, S] in [0, 1], labels [Z, 1, S, S]


def read_slices(case: Mapping[str, str], modality: str) -> Slices:
    keys = ("image", "label")
    transform = [LoadCased(keys), EnsureChannelFirstd(keys), CheckCased("image")]
    transform += [Orientationd(keys, axcodes="RAS", labels=None), ScaleScand("image", ScanScaling(modality))]
    dataset = SliceDataset([case], transform, image_size=SIZE)
    items = [dataset[i] for i in range(len(dataset))]
    return torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items]).long()


def train(scans: Sequence[Slices], steps: int, classes: int) -> nn.Module:
    """Train a U-Net from seed 0, with random affine transforms and contrast."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    images, labels = (torch.cat(parts) for parts in zip(*scans, strict=True))
    net = UNet(2, 1, classes, (12, 24, 48, 96), (2, 2, 2), num_res_units=1, norm="BATCH")
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g) - 0.5

    for _ in range(steps):
        index = torch.randint(len(images), (BATCH,), generator=g)
        image, label = images[index], labels[index]
        angle, scale, shift = uniform(BATCH) * 0.6, 1 + uniform(BATCH) * 0.4, uniform(BATCH, 2) * 0.2
        cos, sin = scale * angle.cos(), scale * angle.sin()
        rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
        image = F.grid_sample(image, grid, align_corners=False)
        label = F.grid_sample(label.float(), grid, mode="nearest", align_corners=False).long()
        image = image.clamp(1e-4, 1) ** torch.exp(uniform(BATCH, 1, 1, 1))
        step = loss(net(image), label)
        optimizer.zero_grad()
        step.backward()
        optimizer.step()
        schedule.step()
    return net


@torch.no_grad()
def score(net: nn.Module, scan: Slices, classes: int) -> float:
    """Mean Dice over the foreground classes, on the stretched slices."""
    net.eval()
    image, label = scan
    pred = torch.cat([net(part).argmax(1, keepdim=True) for part in image.split(44)])
    counts = [((pred == c) & (label == c), pred == c, label == c) for c in range(1, classes)]
    return fmean(float(2 * both.sum() / (p.sum() + t.sum()).clamp_min(1)) for both, p, t in counts)


def select(names: Sequence[str], features: Mapping[str, tuple[ScanFeatures, Anatomy]], budget: int) -> list[str]:
    """The scans that are chosen from `names`, as by `samora select`."""
    embeddings = embed([features[name][0].cells for name in names])

    def likeness(scan: int, other: int) -> float:
        return features[names[scan]][1].likeness(features[names[other]][1])

    return sorted(names[choice.scan] for choice in choose(embeddings, [], [], budget, names, likeness))


@torch.no_grad()
def entropy(net: nn.Module, scan: Slices) -> float:
    """Entropy per voxel of expected foreground, as `samora_monai.inference.uncertainty`."""
    net.eval()
    log_p = torch.cat([net(part).log_softmax(1) for part in scan[0].split(44)])
    p = log_p.exp()
    return float(-(p * log_p).sum() / (1 - p[:, 0]).sum().clamp_min(0.01 * p[:, 0].numel()))


def grow(strategy: str, budgets: Sequence[int], pool: Pool, slices: Mapping[str, Slices], steps: int, classes: int):
    """The scans that a strategy has handed out after each number of labels."""
    labelled: list[str] = []
    scores: dict[str, float] = {}
    grown = []
    for budget in budgets:
        while len(labelled) < budget:
            rest = [name for name in pool.names if name not in labelled]
            last = labelled[-1] if labelled else None
            now = NextScan(rest, labelled, {name: name for name in pool.names}, [], last, pool, scores)
            labelled.append(getattr(now, strategy)() if scores else now.representative())
        grown.append(sorted(labelled))
        if strategy != "representative" and budget != budgets[-1]:
            net = train([slices[name] for name in labelled], steps, classes)
            scores = {name: entropy(net, slices[name]) for name in pool.names if name not in labelled}
    return grown


def corrected(draws: Mapping[str, Mapping[str, float]], random: Sequence[str]) -> dict[str, float]:
    """The Dice of each draw, corrected for the difficulty of its test scans as the random draws show it."""
    values: dict[str, list[float]] = {}
    for draw in random:
        for scan, dice in draws[draw].items():
            values.setdefault(scan, []).append(dice)
    mean = {scan: fmean(dice) for scan, dice in values.items()}
    overall = fmean(mean.values())
    return {
        draw: overall + fmean(dice - mean[scan] for scan, dice in test.items() if scan in mean)
        for draw, test in draws.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT")
    parser.add_argument("--sam_checkpoint", required=True)
    parser.add_argument("--encoder", default="sam2_mini")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--budget", type=int, default=4)
    parser.add_argument("--draws", type=int, default=15)
    parser.add_argument("--parts", type=int, default=8, help="number of random parts of the pool")
    parser.add_argument("--part_size", type=int, default=10, help="scans of each part")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--strategies", type=int, nargs="+", metavar="N", help="numbers of labels, rising: 4 6 8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    found = find_cases(args.dataset_dir, args.datalist)
    cases = {Path(case["image"]).name.split(".")[0]: case for case in found.training + found.validation}
    names, classes = sorted(cases), len(found.class_names or ("background", "foreground"))
    net = build_segmenter(args.encoder, args.image_size, num_classes=2, experts=()).eval()
    load_sam(net, args.sam_checkpoint)
    load, scale = LoadUnlabeledd(), ScaleScand("image", ScanScaling(args.modality))
    volumes = ((name, scale(load({"image": cases[name]["image"]}))["image"]) for name in names)
    features = {name: (scan_features(volume, net), Anatomy(volume)) for name, volume in volumes}

    rng = np.random.default_rng(0)
    slices = {name: read_slices(cases[name], args.modality) for name in names}
    budgets = args.strategies or [args.budget]
    random = {n: [sorted(rng.choice(names, n, replace=False).tolist()) for _ in range(args.draws)] for n in budgets}
    groups: dict[str, list[list[str]]] = {}
    if args.strategies:
        pool = Pool({n: f.cells for n, (f, _) in features.items()}, {n: a for n, (_, a) in features.items()})
        for strategy in ("representative", "uncertain", "mixed"):
            groups[strategy] = grow(strategy, budgets, pool, slices, args.steps, classes)
    else:
        parts = [sorted(rng.choice(names, args.part_size, replace=False).tolist()) for _ in range(args.parts)]
        groups["selected"] = [select(names, features, args.budget)]
        groups["selected from parts"] = [select(pool, features, args.budget) for pool in parts]
        print(f"selected: {' '.join(groups['selected'][0])}", flush=True)

    file = args.folder / "draws.csv"
    draws: dict[str, dict[str, float]] = {}
    if file.exists():
        with open(file, newline="", encoding="utf-8") as lines:
            draws = {row["training"]: json.loads(row["dice"]) for row in csv.DictReader(lines)}
    for draw in (draw for group in (*random.values(), *groups.values()) for draw in group):
        if (key := " ".join(draw)) not in draws:
            trained = train([slices[name] for name in draw], args.steps, classes)
            test = {name: round(score(trained, slices[name], classes), 4) for name in names if name not in draw}
            draws[key] = test
            with open(file, "a", newline="", encoding="utf-8") as lines:
                writer = csv.writer(lines)
                if not lines.tell():
                    writer.writerow(["training", "dice"])
                writer.writerow([key, json.dumps(test)])
            print(f"{key}  {fmean(test.values()):.3f}", flush=True)
    for budget in budgets:
        result = corrected(draws, [" ".join(draw) for draw in random[budget]])
        for name, group in {f"{args.draws} random draws": random[budget], **groups}.items():
            dice = [result[" ".join(draw)] for draw in group if len(draw) == budget]
            spread = f" +- {stdev(dice):.3f}, {min(dice):.3f} to {max(dice):.3f}" if len(dice) > 1 else ""
            if dice:
                print(f"{budget} labels, {name}: {fmean(dice):.3f}{spread}")


if __name__ == "__main__":
    main()
