"""A linear probe of the tokens of each expert of a study, before any fine-tuning.

    python -m benchmarks.fewshot.probe DIR --folder OUT --datalist dataset_8.json --modality MR

A ridge regression predicts the foreground fraction of each patch from its token after the last block of SAM's encoder,
with one expert at a time. It is fitted on the first `--few` labelled scans and scored on the other labelled ones, which
a grid of that many scans does not use; the validation scans are not read. Every row also gets the position in the
slice. Prints the average precision (area under precision over recall), its mean and that of each scan, and the relative
change of the base's tokens by an expert: the mean of |with - without| / |without|.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from torch import Tensor

from benchmarks.fewshot.budget import QUICK
from benchmarks.fewshot.grid import FEW
from samora_monai.checkpoints import load_expert, load_sam
from samora_monai.data import LoadCased, ScaleScand, ScanScaling, find_cases
from samora_monai.errors import InputError
from samora_monai.networks import LEVELS, build_segmenter
from samora_monai.pipeline.recipes import LEARNING
from samora_monai.pretraining import MAETeacher, read_teacher
from samora_monai.pretraining.distillation import EncoderFeatures

GRID = QUICK.image_size // 16  # tokens in a row
STEP = 3  # every third slice
RIDGE = 100.0
Features = Callable[[Tensor], Tensor]  # [B, 1, H, W] -> [B, dim, GRID, GRID]
Scan = tuple[Tensor, Tensor]  # slices [B, 1, H, W] in [0, 1]; foreground fraction of each patch, [B, 1, GRID, GRID]


def read_scan(case: dict[str, str], modality: str) -> Scan:
    """Read a scan as training does, without augmentation; encoder and teacher resize the slices themselves."""
    keys = ["image", "label"]
    scale = ScaleScand("image", ScanScaling(modality))
    read = Compose([LoadCased(keys), EnsureChannelFirstd(keys), Orientationd(keys, "RAS", labels=None), scale])(case)
    image, label = (read[key].as_tensor()[..., ::STEP].permute(3, 0, 1, 2) for key in keys)
    return image, F.adaptive_avg_pool2d((label > 0).float(), GRID)


def position() -> Tensor:
    """Monomials up to degree 2 of the position in the slice, `[GRID * GRID, 6]`."""
    axis = torch.linspace(-1, 1, GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y, x * x, y * y, x * y, torch.ones_like(x)], -1).flatten(0, 1)


@torch.no_grad()
def design(features: Features | None, image: Tensor) -> Tensor:
    """The regressors, one float64 row per token: the position and, if given, the features as z-scores."""
    rows = position().expand(len(image), -1, -1)
    if features is not None:
        tokens = torch.cat([features(batch).flatten(2).mT for batch in image.split(16)])
        rows = torch.cat([F.layer_norm(tokens, tokens.shape[-1:]), rows], -1)
    return rows.flatten(0, 1).double()


def average_precision(score: Tensor, truth: Tensor) -> float:
    """The precision at the score of each positive, averaged over the positives."""
    hits = truth[score.argsort(descending=True)].double()
    return float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum())


def probe(features: Features | None, known: Sequence[Scan], new: Sequence[Scan]) -> list[float]:
    """The average precision on each of the new scans of a regression that is fitted on the known ones."""
    a = torch.cat([design(features, image) for image, _ in known])
    y = torch.cat([part.flatten() for _, part in known]).double()
    scale = a.square().mean(0).sqrt()
    a = a / scale
    weights = torch.linalg.solve(a.T @ a + RIDGE * torch.eye(a.shape[1]), a.T @ y) / scale
    return [average_precision(design(features, image) @ weights, part.flatten() >= 0.5) for image, part in new]


def encoder_with(base: Path, experts: dict[str, Path]) -> Features:
    """The tokens of the base's encoder with the given experts."""
    rank = LEARNING[True]["expert"]["rank"]
    net = build_segmenter("tiny", image_size=QUICK.image_size, experts=list(experts), rank=rank)
    load_sam(net, base)
    for level, file in experts.items():
        load_expert(net, file, level)
    return EncoderFeatures(net.eval())


def patch_teacher(file: Path) -> Features:
    """The tokens of the tiny MAE."""
    teacher = MAETeacher("tiny").eval()
    read_teacher(teacher, str(file))
    return lambda image: teacher(image).mT.unflatten(2, (GRID, GRID))


@torch.no_grad()
def moved(features: Features, base: Features, image: Tensor) -> float:
    """The mean distance of the tokens from the base's, relative to the length of the base's."""
    before = base(image)
    return float(((features(image) - before).norm(dim=1) / before.norm(dim=1)).mean())


def show(args: argparse.Namespace) -> None:
    """Print one line per row.

    Raises:
        InputError: the study has no stage 1 or several; a file is missing; too few scans have labels.
    """
    base, homes = args.folder / "base" / "base.pt", sorted((args.folder / "stage1").glob("*"))
    cases = find_cases(args.dataset_dir, args.datalist).training
    if len(homes) != 1:
        raise InputError(
            f"'{args.folder}' has {len(homes)} folders in stage1, expected one; give the folder of a study"
        )
    if len(cases) <= args.few:
        raise InputError(
            f"{len(cases)} scans have labels but {args.few} are to be fitted on, so none is left; give fewer with --few"
        )
    scans = [read_scan(case, args.modality) for case in cases]
    known, new = scans[: args.few], scans[args.few :]
    without = encoder_with(base, {})

    def report(name: str, features: Features | None, distance: str = "") -> None:
        found = probe(features, known, new)
        print(f"{name:18} {100 * sum(found) / len(found):6.1f} ", *(f"{100 * value:6.1f}" for value in found), distance)

    report("position alone", None)
    report("base", without)
    report("patch teacher", patch_teacher(homes[0] / "patch_teacher.pt"))
    for variant in ("trained", "random_0"):
        for level in LEVELS:
            features = encoder_with(base, {level: homes[0] / f"{level}_{variant}.pt"})
            report(f"{level}, {variant}", features, f"  moved {moved(features, without, known[0][0]):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the study, on the stand-in base")
    parser.add_argument("--datalist", default="dataset.json")
    parser.add_argument("--modality", default="CT", choices=("CT", "MR"))
    parser.add_argument("--few", type=int, default=FEW, help=f"labelled scans to fit on; default {FEW}")
    try:
        show(parser.parse_args())
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
