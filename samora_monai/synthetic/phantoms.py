"""Synthetic abdominal CT phantoms with labels, for the demo and the tests.

A schematic abdomen in Hounsfield units: five labelled organs among unlabelled ones of similar density, soft edges,
noise and a slow bias field. Cases differ in shape, position, density, spacing, stored orientation and origin, and every
third one is oblique, so that code which ignores the affine fails on them. The anatomy is not realistic.

    python -m samora_monai.synthetic.phantoms DIR --training 8 --validation 3
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from samora_monai.data.datalist import datalist_text, write_datalist
from samora_monai.data.label_files import check_output_dir, nifti_image
from samora_monai.errors import InputError

CLASS_NAMES = ("background", "spleen", "right kidney", "left kidney", "liver", "aorta")
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER, AORTA = range(1, 6)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RPI", "SAL")
OBLIQUE_DEGREES = 10.0

Triple = tuple[float, float, float]


def write_phantoms(
    folder: str | os.PathLike,
    num_training: int = 8,
    num_validation: int = 3,
    num_unlabeled: int = 0,
    shape: tuple[int, int, int] = (96, 96, 32),
    seed: int = 0,
) -> Path:
    """Write phantoms as NIfTI with a Decathlon-style datalist, and return its path.

    Args:
        folder: must be writable; gets folders with the Decathlon's names and `dataset.json`.
        num_training, num_validation, num_unlabeled: number of cases in each list; unlabeled ones get no label.
        shape: voxels from left to right, back to front and feet to head; the last varies by a quarter.
        seed: equal seeds give equal files.
    """
    root = check_output_dir(folder)
    ends = {"training": "Tr", "validation": "Val", "unlabeled": "Unlabeled"}
    names = ["training"] * num_training + ["validation"] * num_validation + ["unlabeled"] * num_unlabeled
    lists: dict[str, list[dict[str, str]]] = {name: [] for name in ends}
    for case, name in enumerate(names, 1):
        parts = ("image",) if name == "unlabeled" else ("image", "label")
        entry = {part: f"{part}s{ends[name]}/phantom_{case:03d}.nii.gz" for part in parts}
        # strict=False: of an unlabelled case only the image is written
        for file, nifti in zip(entry.values(), make_phantom(case, shape, seed), strict=False):
            (root / file).parent.mkdir(exist_ok=True)
            nib.save(nifti, root / file)
        lists[name].append(entry)
    source = "synthetic, made by samora_monai.synthetic.phantoms"
    return write_datalist(root, datalist_text("abdominal phantoms", source, "CT", CLASS_NAMES, lists))


def make_phantom(
    case: int, shape: tuple[int, int, int] = (96, 96, 32), seed: int = 0
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Make one case: image (int16, HU) and label (uint8, `CLASS_NAMES`) on one grid.

    The anatomy, the orientation and whether the grid is oblique depend on the number `case` from 1 and on `seed`.
    """
    rng = np.random.default_rng((seed, case))
    size = (shape[0], shape[1], round(shape[2] * rng.uniform(0.75, 1.25)))
    hu, label = _Abdomen(size, rng).draw()
    spacing = np.array([rng.uniform(340, 380) / size[0], 0.0, rng.uniform(180, 210) / size[2]])  # mm
    spacing[1] = spacing[0] * size[0] / size[1]
    affine = np.diag([*spacing, 1.0])
    if case % 3 == 0:
        axis = rng.normal(size=3)
        rotation = Rotation.from_rotvec(OBLIQUE_DEGREES * axis / np.linalg.norm(axis), degrees=True)
        affine[:3, :3] = rotation.as_matrix() @ affine[:3, :3]
    affine[:3, 3] = rng.uniform(-200, 200, size=3)
    stored = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(ORIENTATIONS[case % len(ORIENTATIONS)]))
    arrays = (np.round(hu).astype(np.int16), label)
    image, mask = (nib.Nifti1Image(array, affine).as_reoriented(stored) for array in arrays)
    return nifti_image(image.dataobj, image.affine), nifti_image(mask.dataobj, mask.affine)


class _Abdomen:
    """One case on a RAS grid; later structures cover earlier ones.

    Coordinates: x from the patient's left (-1) to right (1), y from back (-1) to front (1), z from feet (0) to head (1)
    """

    def __init__(self, size: tuple[int, int, int], rng: np.random.Generator) -> None:
        self.rng = rng
        axes = (np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), np.linspace(0, 1, size[2]))
        x, y, z = np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij")
        angle = np.deg2rad(rng.uniform(-4, 4))  # of the patient on the table
        x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        self.x = x / rng.uniform(0.94, 1.04) + 0.04 * self._smooth(size)
        self.y = y / rng.uniform(0.94, 1.04) + 0.04 * self._smooth(size)
        self.z = z + rng.uniform(-0.06, 0.06) + 0.04 * self._smooth(size)
        self.hu = np.full(size, -1000, dtype=np.float32)
        self.label = np.zeros(size, dtype=np.uint8)
        self.inside = np.ones(size, dtype=bool)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the image `[X, Y, Z]` in HU, float32, and the label, uint8."""
        self._wall()
        self._bowel()
        self._organs()
        self._vessels()
        hu = ndimage.gaussian_filter(self.hu, (0.6, 0.6, 0.35))  # partial volume
        hu += 8 * self._smooth(hu.shape)  # bias field
        hu += self.rng.normal(0, 14, hu.shape).astype(np.float32)
        return np.clip(hu, -1000, 1500), self.label

    def _smooth(self, size: tuple[int, ...], knots: int = 5) -> np.ndarray:
        """Return a smooth random field with a standard deviation near 1 at its knots, clipped at 2."""
        coarse = np.clip(self.rng.normal(size=(knots, knots, knots)), -2, 2)
        fine = ndimage.zoom(coarse, np.array(size) / knots, order=2, grid_mode=True, mode="nearest")
        return fine.astype(np.float32)

    def _radius(self, center: Triple, axes: Triple, degrees: float = 0.0) -> np.ndarray:
        """Return the distance from `center` in units of the half `axes` of an ellipsoid rotated in the slice plane."""
        x, y, z = self.x - center[0], self.y - center[1], self.z - center[2]
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        u, v, w = (cos * x + sin * y) / axes[0], (cos * y - sin * x) / axes[1], z / axes[2]
        return np.sqrt(u * u + v * v + w * w)

    def _organ(self, center: Triple, axes: Triple, degrees: float = 0.0) -> np.ndarray:
        """Return `_radius` with random changes of position, size and angle."""
        moved = np.asarray(center) + self.rng.uniform(-1, 1, 3) * (0.03, 0.03, 0.04)
        scaled = np.asarray(axes) * self.rng.uniform(0.88, 1.12, 3)
        return self._radius(tuple(moved), tuple(scaled), degrees + self.rng.uniform(-12, 12))

    def _paint(self, mask: np.ndarray, hu: float, spread: float = 8.0, label: int = 0) -> None:
        mask = mask & self.inside
        self.hu[mask] = hu + self.rng.uniform(-spread, spread)
        self.label[mask] = label

    def _wall(self) -> None:
        """Skin, fat, muscle, ribs, visceral fat, spine and the muscles beside it."""
        rng = self.rng
        body = self._radius((0, 0, 0.5), (0.95, 0.76, 1e6))
        fat = rng.uniform(0.86, 0.91)
        self._paint(body < 1, 20)
        self._paint(body < 0.98, -105)
        self._paint(body < fat, 55)
        around = np.arctan2(self.y, self.x)
        ribs = np.cos(11 * around + 14 * self.z * np.sign(self.x)) > 0.6
        self._paint((np.abs(body - fat + 0.04) < 0.022) & ribs & (self.z > 0.45) & (self.y < 0.45), 420, 60)
        cavity = body < fat - 0.08
        self._paint(cavity, -90)
        self.hu[cavity] += 12 * self._smooth(self.hu.shape, 11)[cavity]
        for side in (-1, 1):
            self._paint(self._organ((side * 0.19, -0.50, 0.5), (0.16, 0.10, 1e6), side * 15) < 1, 55)
            self._paint(self._organ((side * 0.17, -0.27, 0.2), (0.08, 0.10, 0.6)) < 1, 58)  # psoas
        disc = np.cos(2 * np.pi * 5 * self.z) > 0.75
        vertebra = self._radius((0, -0.34, 0.5), (0.135, 0.115, 1e6))
        self._paint(vertebra < 1, 520, 60)
        self._paint(vertebra < 0.82, 210, 30)
        self._paint((vertebra < 1) & disc, 85)
        self._paint(self._radius((0, -0.56, 0.5), (0.03, 0.10, 1e6)) < 1, 450, 60)  # spinous process
        for side in (-1, 1):
            self._paint(self._radius((side * 0.11, -0.47, 0.5), (0.09, 0.028, 1e6), side * 35) < 1, 400, 60)
        self._paint(self._radius((0, -0.47, 0.5), (0.055, 0.045, 1e6)) < 1, 30)  # canal
        self.inside = cavity  # of the wall, for all later structures

    def _bowel(self) -> None:
        """Unlabelled loops of bowel, some with gas, in front of the organs and below them."""
        for _ in range(22):
            x, y, z = self.rng.uniform((-0.5, 0.02, -0.05), (0.5, 0.45, 0.42))
            radius = self._organ((x, y, z), (0.13, 0.10, 0.10), self.rng.uniform(0, 180))
            self._paint(radius < 1, float(self.rng.choice([35, 70, 110])), 15)
            if self.rng.random() < 0.3:
                self._paint((radius < 0.8) & (self.y > y + 0.02), -700, 100)

    def _organs(self) -> None:
        stomach = self._organ((-0.27, 0.22, 0.80), (0.24, 0.18, 0.26), 25)
        self._paint(stomach < 1, 90)
        self._paint(stomach < 0.85, 35)
        self._paint((stomach < 0.8) & (self.y > 0.30), -800, 100)
        lobes = np.minimum(
            self._organ((0.42, 0.06, 0.80), (0.37, 0.46, 0.46), -8),
            self._organ((0.05, 0.30, 0.86), (0.42, 0.17, 0.22), -8),
        )
        liver = lobes < 1
        self._paint(liver, 105, 12, LIVER)
        self._paint(liver & (self._smooth(self.hu.shape, 11) > 1.25), 145, 10, LIVER)  # vessels
        self._paint(self._organ((0.26, 0.22, 0.52), (0.08, 0.12, 0.10), 20) < 1, 12)  # gallbladder
        self._paint(self._organ((-0.03, 0.06, 0.55), (0.27, 0.07, 0.08), 12) < 1, 85)  # pancreas
        self._paint(self._organ((-0.61, -0.16, 0.78), (0.145, 0.27, 0.26), -22) < 1, 118, 10, SPLEEN)
        for side, height, label in ((1, 0.34, RIGHT_KIDNEY), (-1, 0.42, LEFT_KIDNEY)):
            kidney = self._organ((side * 0.42, -0.29, height), (0.145, 0.18, 0.27), side * 30)
            self._paint(kidney < 1, 185, 15, label)
            self._paint(kidney < 0.62, 135, 10, label)  # medulla
            self._paint(self._radius((side * 0.31, -0.24, height), (0.09, 0.06, 0.12)) < 1, -70)  # hilum

    def _vessels(self) -> None:
        """Aorta, left of the midline, and the unlabelled vena cava of nearly the same density."""
        phase = self.rng.uniform(0, 2 * np.pi)
        sway = 0.03 * np.sin(2 * np.pi * self.z + phase)
        center, radius = -0.06 + self.rng.uniform(-0.02, 0.02), self.rng.uniform(0.085, 0.105)
        aorta = np.hypot(self.x - center - sway, self.y + 0.13) < radius * (1.1 - 0.2 * (1 - self.z))
        cava = np.hypot((self.x - 0.15 + sway) / 0.10, (self.y + 0.15) / 0.075) < 1
        self._paint(cava, 130, 12)
        self._paint(aorta, 165, 12, AORTA)


def main() -> None:
    """Write phantoms from the command line."""
    parser = argparse.ArgumentParser(description="Write synthetic abdominal CT phantoms with labels.")
    parser.add_argument("folder", help="folder to write to")
    parser.add_argument("--training", type=int, default=8, help="labelled training cases (default 8)")
    parser.add_argument("--validation", type=int, default=3, help="labelled validation cases (default 3)")
    parser.add_argument("--unlabeled", type=int, default=0, help="cases without a label (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(write_phantoms(args.folder, args.training, args.validation, args.unlabeled, seed=args.seed))
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
