"""Make the stand-in base promptable: train prompt encoder and mask decoder on its frozen encoder.

    python -m benchmarks.clicks.train FILE [--steps 1200 --pictures 600]

The base `samora_monai/weights/tiny.pt` was trained without prompts. Here, as in SAM's training
(https://arxiv.org/abs/2304.02643, appendix A), the target is one organ of a picture of
`samora_monai.synthetic.creatures`; its first prompt is a point in it, a jittered box, both, or, for propagation and
corrections, a deformed mask with its box; in half of the steps a second one adds a point where the first answer was
wrong, and its logits. Writes FILE, an adapter in float16 that `checkpoints.load_adapter` reads into a network with the
base.

Differs from SAM's training in: at most two rounds instead of eleven, one mask instead of three for an ambiguous point,
no prediction of the IoU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from samora_monai.checkpoints import load_adapter, load_sam, save_adapter
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.pipeline.at_hand import STAND_IN, STAND_IN_FILE
from samora_monai.synthetic.creatures import FIRST_ORGAN, make_slice

SIZE = 192  # side of the network's input, that of the base's last training
SIDE = 160  # of a picture, in pixels, as for the base
SEED = 19  # of the pictures; the base's are other ones
PICTURES, TARGETS = 4, 4  # in a step, and targets of each
SMALLEST = 30  # pixels of a target
RATE = 4e-4
MASK_LOGIT = 7.0  # of a mask prompt that is no output of the network


def make_pictures(number: int) -> list[tuple[Tensor, list[np.ndarray]]]:
    """Images `[1, SIZE, SIZE]` in [0, 1], each with the masks `[SIZE, SIZE]` of its organs."""
    pictures = []
    for k in range(number):
        image, label = make_slice((SEED, k), SIDE)
        grey = torch.from_numpy((image.astype(np.float32) + 125) / 400)
        grey = F.interpolate(grey[None, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        rows = (np.arange(SIZE) * SIDE) // SIZE
        label = label[rows][:, rows]
        masks = [_largest_part(label == c) for c in range(FIRST_ORGAN, label.max() + 1)]
        masks = [mask for mask in masks if mask.sum() >= SMALLEST]
        if masks:
            pictures.append((grey, masks))
    return pictures


def _largest_part(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask


def _point_in(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """A point (x, y): anywhere in the mask, or, half of the time, deep inside."""
    if rng.random() < 0.5:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        mask = depth >= 0.7 * depth.max()
    rows, columns = np.nonzero(mask)
    pick = rng.integers(len(rows))
    return float(columns[pick]), float(rows[pick])


def _box_of(mask: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Box (x1, y1, x2, y2) with corners moved by a tenth of its sides, as in SAM's training."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=float)
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    return (box + np.clip(rng.normal(0, 0.1, 4) * sides, -20, 20)).clip(0, SIZE - 1).tolist()


def _deformed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask moved and grown or shrunk, as it is in a neighbouring slice or in a draft."""
    moved = ndimage.shift(mask.astype(np.float32), rng.normal(0, 2.5, 2), order=0)
    wobble = ndimage.gaussian_filter(rng.normal(size=mask.shape), 6)
    distance = ndimage.distance_transform_edt(moved > 0.5) - ndimage.distance_transform_edt(moved <= 0.5)
    return distance + rng.normal(0, 2) + wobble / wobble.std() * rng.uniform(0, 3) > 0


def _low(masks: Sequence[np.ndarray]) -> Tensor:
    """Masks `[SIZE, SIZE]` -> the part of each pixel of the network's output that they cover, `[n, 1, S/4, S/4]`."""
    return F.avg_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], 4)


def first_prompts(masks: Sequence[np.ndarray], kind: str, rng: np.random.Generator) -> dict[str, Tensor]:
    """Prompts of one kind for all targets: `"point"`, `"box"`, `"box and point"` or `"mask"`."""
    prompts = {}
    if kind in ("point", "box and point"):
        prompts["points"] = torch.tensor([[_point_in(mask, rng)] for mask in masks])
        prompts["labels"] = torch.ones(len(masks), 1)
    if kind == "mask":
        drafts = [_deformed(mask, rng) for mask in masks]
        drafts = [draft if draft.any() else mask for draft, mask in zip(drafts, masks, strict=True)]
        prompts["masks"] = (2 * _low(drafts) - 1) * MASK_LOGIT
        masks = drafts
    if kind != "point":
        prompts["boxes"] = torch.tensor([_box_of(mask, rng) for mask in masks])
    return prompts


def correction(prompts: dict[str, Tensor], logits: Tensor, masks: Sequence[np.ndarray], rng: np.random.Generator):
    """The prompts with a point in the wrong part of each answer `[n, 1, S/4, S/4]`, and that answer as mask."""
    answers = F.interpolate(logits, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0].numpy() > 0
    points, labels = [], []
    for answer, mask in zip(answers, masks, strict=True):
        wrong = answer != mask
        wrong = ndimage.binary_opening(wrong) if ndimage.binary_opening(wrong).any() else wrong
        x, y = _point_in(wrong if wrong.any() else mask, rng)
        points.append([(x, y)])
        labels.append([float(mask[int(y), int(x)])])
    new = {"points": torch.tensor(points), "labels": torch.tensor(labels)}
    if "points" in prompts:
        new = {name: torch.cat([prompts[name], value], 1) for name, value in new.items()}
    return prompts | new | {"masks": logits}


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, weighted to 1:1 where a target is small, plus Dice; both are means over the targets."""
    weight = 1 + target * (1 / target.mean((2, 3), keepdim=True).clamp_min(0.01) - 1).clamp_max(10)
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight) / weight.mean()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    return entropy + dice.mean()


def train(net: Segmenter, pictures: Sequence[tuple[Tensor, list[np.ndarray]]], steps: int) -> None:
    """Train all of the network but its encoder."""
    rng = np.random.default_rng(torch.initial_seed() % 2**32)
    trained = [*net.prompt_encoder.parameters(), *net.mask_decoder.parameters()]
    net.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    began, mean = time.monotonic(), 0.0
    for step in range(steps):
        images, masks = [], []
        for i in rng.choice(len(pictures), PICTURES):
            image, own = pictures[i]
            turns, flip, gamma = int(rng.integers(4)), rng.random() < 0.5, float(np.exp(rng.uniform(-0.4, 0.4)))
            image = torch.rot90(image, turns, (1, 2)) ** gamma
            images.append(image.flip(2) if flip else image)
            for j in rng.choice(len(own), TARGETS, replace=len(own) < TARGETS):
                mask = np.rot90(own[j], turns)
                masks.append(np.ascontiguousarray(mask[:, ::-1] if flip else mask))
        with torch.no_grad():
            embedding = net.image_encoder.features(net.preprocess(torch.stack(images))).embedding
        embedding = embedding.repeat_interleave(TARGETS, 0)
        kind = rng.choice(["point", "box", "box and point", "mask"], p=[0.4, 0.25, 0.1, 0.25])
        prompts, target = first_prompts(masks, kind, rng), _low(masks)
        total = torch.zeros(())
        logits, rounds = None, 1 + int(rng.random() < 0.5)
        for _ in range(rounds):
            if logits is not None:
                prompts = correction(prompts, logits.detach(), masks, rng)
            points = (prompts["points"], prompts["labels"]) if "points" in prompts else None
            sparse, dense = net.prompt_encoder(points, prompts.get("boxes"), prompts.get("masks"))
            logits = net.mask_decoder(embedding, net.prompt_encoder.get_dense_pe(), sparse, dense, False)[0]
            total = total + loss_of(logits, target) / rounds
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        mean = total.item() if not step else 0.98 * mean + 0.02 * total.item()
        if step % 25 == 24:
            print(f"step {step + 1}/{steps}: loss {mean:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument(
        "--start", type=Path, help="FILE of an earlier run that is trained further, on the same pictures"
    )
    args = parser.parse_args()
    torch.manual_seed(1 if args.start else 0)
    net = build_segmenter(STAND_IN, SIZE, num_classes=4, experts=())
    load_sam(net, STAND_IN_FILE)
    if args.start:
        load_adapter(net, args.start)
    train(net, make_pictures(args.pictures), args.steps)
    save_adapter(net.half(), args.file)
    print(args.file)


if __name__ == "__main__":
    main()
