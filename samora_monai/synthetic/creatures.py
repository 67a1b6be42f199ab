"""Synthetic pictures with labels, to train a base where SAM's weights are not available.

Each picture is a cross-section of the same imaginary creature: a body with a wall and thirteen organs, some of them
hollow, some thin and bent, in an arrangement of no real anatomy. From picture to picture the creature is turned,
stretched and bent, its organs move, change their size or are missing, and every region draws its own grey level and
texture; neighbours may differ in texture alone. Blur, shading, noise and the scaling of grey values vary too. So the
class of a pixel follows from form and position and never from its grey level, which is what a base has to learn for
scans of any modality.

    python -m samora_monai.synthetic.creatures DIR --training 24 --validation 4
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from samora_monai.data.datalist import datalist_text, write_datalist
from samora_monai.data.label_files import check_output_dir
from samora_monai.errors import InputError
from samora_monai.synthetic.textures import random_texture

HU_RANGE = (-125.0, 275.0)  # grey 0 and 1, so that the window for abdominal CT applies
SPECIES = 0  # seed of the arrangement of organs
NUM_ORGANS = 13
CLASS_NAMES = ("background", "body", *(f"organ {k}" for k in range(1, NUM_ORGANS + 1)))
BODY, FIRST_ORGAN = 1, 2


@dataclass(frozen=True)
class Organ:
    """Form and place of an organ in the average creature, in units of the picture's side.

    Args:
        center: row and column.
        size: half of the longest diameter.
        slimness: shortest diameter in units of the longest.
        angle: in radians.
        form: `"ellipse"`, `"blob"`, `"hollow"` or `"bent"`.
        bulges: amplitude and phase of the waves of a blob's outline.
    """

    center: tuple[float, float]
    size: float
    slimness: float
    angle: float
    form: str
    bulges: tuple[tuple[float, float], ...]


def arrange(seed: int, number: int = NUM_ORGANS) -> list[Organ]:
    """Draw the average creature: organs from large to small, each as far from the others as chance allows."""
    rng = np.random.default_rng((seed, 5))
    organs: list[Organ] = []
    for k, size in enumerate(np.geomspace(0.19, 0.05, number)):
        around, out = rng.uniform(0, 2 * np.pi, 20), 0.38 * np.sqrt(rng.uniform(0, 1, 20))
        candidates = np.stack([0.5 + 0.8 * out * np.cos(around), 0.5 + out * np.sin(around)], axis=-1)
        gaps = [np.linalg.norm(candidates - organ.center, axis=-1) - organ.size for organ in organs]
        row, column = candidates[np.argmax(np.min(gaps, axis=0))] if gaps else (0.45, 0.4)
        organs.append(
            Organ(
                center=(row, column),
                size=size,
                slimness=rng.uniform(0.5, 1),
                angle=rng.uniform(0, np.pi),
                form=("ellipse", "blob", "hollow", "bent")[k % 4],
                bulges=tuple((rng.uniform(0.2, 0.5) / waves, rng.uniform(0, 2 * np.pi)) for waves in range(2, 6)),
            )
        )
    return organs


def write_creatures(
    folder: str | os.PathLike,
    num_training: int = 24,
    num_validation: int = 4,
    slices: int = 24,
    side: int = 128,
    seed: int = 0,
) -> Path:
    """Write volumes of unrelated slices as NIfTI with a Decathlon-style datalist, and return its path.

    Args:
        folder: must be writable; gets `imagesTr`, `labelsTr`, `imagesVal`, `labelsVal` and `dataset.json`.
        num_training, num_validation: number of volumes in each list.
        slices: slices of each volume.
        side: height and width of a slice in pixels.
        seed: equal seeds give equal files.
    """
    root = check_output_dir(folder)
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    ends = ["Tr"] * num_training + ["Val"] * num_validation
    for case, end in enumerate(ends, 1):
        pairs = [make_slice((seed, case, k), side) for k in range(slices)]
        entry = {part: f"{part}s{end}/creature_{case:03d}.nii.gz" for part in ("image", "label")}
        for file, arrays in zip(entry.values(), zip(*pairs, strict=True), strict=True):
            nifti = nib.Nifti1Image(np.stack(arrays, axis=-1), np.eye(4))
            nifti.header.set_xyzt_units("mm")
            (root / file).parent.mkdir(exist_ok=True)
            nib.save(nifti, root / file)
        lists["training" if end == "Tr" else "validation"].append(entry)
    source = "synthetic, made by samora_monai.synthetic.creatures"
    return write_datalist(root, datalist_text("imaginary creatures", source, "CT", CLASS_NAMES, lists))


def make_slice(seed: int | tuple[int, ...], side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Make one picture: image `[side, side]` int16 in `HU_RANGE`, label `[side, side]` uint8 of `CLASS_NAMES`."""
    picture = _Picture(np.random.default_rng(seed), side)
    picture.draw(arrange(SPECIES))
    low, high = HU_RANGE
    return np.round(low + (high - low) * picture.exposed()).astype(np.int16), picture.label


class _Picture:
    """One cross-section, painted from the outside to the inside."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng, self.side = rng, side
        self.label = np.zeros((side, side), np.uint8)
        self.levels = rng.uniform(0.02, 0.98, rng.integers(3, 8))  # fewer levels than organs: some look alike
        row, column = (np.indices((side, side)) + 0.5) / side - 0.5
        angle, zoom, stretch = rng.normal(0, 0.2), rng.uniform(0.75, 1.15), rng.uniform(0.85, 1.18)
        row, column = (row - rng.uniform(-0.07, 0.07)) / zoom * stretch, (column - rng.uniform(-0.07, 0.07)) / zoom
        column = column / stretch
        bend = rng.uniform(0, 0.05)
        self.row = np.cos(angle) * row - np.sin(angle) * column + 0.5 + bend * self._smooth(4)
        self.column = np.sin(angle) * row + np.cos(angle) * column + 0.5 + bend * self._smooth(4)
        self.grey = self._material(rng.uniform(0, 0.15) if rng.random() < 0.7 else rng.uniform(0.02, 0.98))

    def draw(self, organs: list[Organ]) -> None:
        rng = self.rng
        depth = np.hypot((self.row - 0.5) / 0.85, self.column - 0.5) - 0.45
        self._paint(depth, rng.uniform(0.02, 0.98), BODY)
        if rng.random() < 0.6:
            self._paint(depth + rng.uniform(0.02, 0.05), rng.uniform(0.02, 0.98), BODY)  # inside of the wall
        for number, organ in enumerate(organs, FIRST_ORGAN):
            if rng.random() < 0.15:  # missing
                continue
            distance, level = self._distance(organ), rng.choice(self.levels)
            self._paint(distance, level, number)
            if organ.form == "hollow":
                self._paint(distance + rng.uniform(0.15, 0.3) * organ.size, rng.choice(self.levels), number)
        for _ in range(rng.integers(0, 4)):  # small things that are no organs
            row, column = rng.uniform(0.15, 0.85, 2)
            radius = np.hypot(self.row - row, (self.column - column) / rng.uniform(0.5, 1))
            self._paint(radius - rng.uniform(0.02, 0.06), rng.uniform(0.02, 0.98), BODY)

    def exposed(self) -> np.ndarray:
        """Grey values in [0, 1] after blur, shading, noise, scaling and a gamma curve."""
        rng = self.rng
        grey = ndimage.gaussian_filter(self.grey, rng.uniform(0.2, 1.2) * self.side / 128)
        if rng.random() < 0.5:
            grey = grey * np.exp(rng.uniform(0, 0.3) * self._smooth(3))
        noise = rng.choice([0.005, 0.01, 0.02, 0.04, 0.08]) * rng.normal(size=grey.shape)
        if rng.random() < 0.5:
            noise = 1.8 * ndimage.gaussian_filter(noise, 0.6)
        grey = np.abs(grey + noise)
        low, high = np.percentile(grey, [rng.uniform(0, 1.5), 100 - rng.uniform(0, 1.5)])
        return np.clip((grey - low) / (high - low + 1e-6), 0, 1) ** np.exp(rng.uniform(-0.4, 0.4))

    def _distance(self, organ: Organ) -> np.ndarray:
        """Distance to the outline of this picture's variant of an organ, negative inside."""
        rng = self.rng
        center = organ.center + rng.normal(0, 0.025, 2)
        size, slimness = organ.size * rng.uniform(0.75, 1.25), organ.slimness * rng.uniform(0.85, 1.15)
        angle = organ.angle + rng.normal(0, 0.25)
        row, column = self.row - center[0], self.column - center[1]
        u, v = np.cos(angle) * row + np.sin(angle) * column, np.cos(angle) * column - np.sin(angle) * row
        if organ.form == "bent":
            return np.maximum(np.abs(v - 1.5 * u * u) - 0.2 * size, np.abs(u) - 1.6 * size)
        if organ.form == "blob":
            around = np.arctan2(v, u)
            waves = enumerate(organ.bulges, 2)
            radius = 1 + sum(amplitude * np.cos(n * around + phase) for n, (amplitude, phase) in waves)
            return np.hypot(u, v) - size * np.clip(radius, 0.3, 1.7)
        return np.hypot(u, v / slimness) - size

    def _paint(self, distance: np.ndarray, level: float, label: int) -> None:
        """Cover everything inside an outline with a new material; a part of the outlines is blurred."""
        edge = self.rng.choice([0.004, 0.01, 0.02])  # width over which the material fades in
        cover = np.clip(0.5 - distance / edge, 0, 1)
        self.grey = self.grey + cover * (self._material(level) - self.grey)
        self.label[cover > 0.5] = label

    def _material(self, level: float) -> np.ndarray:
        """Grey values `[side, side]` near `level`, in four of five cases with a texture."""
        material = np.full((self.side, self.side), level)
        if self.rng.random() < 0.8:
            material += self.rng.choice([0.02, 0.05, 0.1, 0.15]) * random_texture(self.rng, self.side)
        return material

    def _smooth(self, knots: int) -> np.ndarray:
        """A smooth random field `[side, side]` with a standard deviation near 1 at its knots."""
        coarse = self.rng.normal(size=(knots, knots))
        return ndimage.zoom(coarse, self.side / knots, order=3, grid_mode=True, mode="nearest")


def main() -> None:
    """Write pictures from the command line."""
    parser = argparse.ArgumentParser(description="Write synthetic pictures of an imaginary creature with labels.")
    parser.add_argument("folder", help="folder to write to")
    parser.add_argument("--training", type=int, default=24, help="training volumes (default 24)")
    parser.add_argument("--validation", type=int, default=4, help="validation volumes (default 4)")
    parser.add_argument("--slices", type=int, default=24, help="slices of each volume (default 24)")
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(write_creatures(args.folder, args.training, args.validation, args.slices, args.side, args.seed))
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
