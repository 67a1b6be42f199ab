"""Synthetic abdominal CT phantoms with labels, for the demo and the tests.

Five labelled organs among unlabelled ones of similar density, in Hounsfield units, with what a scanner adds. No two
cases are alike: they differ in size, position, outlines, density, contrast phase, noise, spacing, stored orientation
and origin, and every third one is oblique, so that code which ignores the affine fails on them. They look like CT, but
are drawn from ellipsoids and tubes: nothing learned from them holds for patients.

    python -m samora_monai.synthetic.phantoms DIR --training 8 --validation 3
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy.spatial.transform import Rotation

from samora_monai.data.datalist import datalist_text, write_datalist
from samora_monai.data.label_files import check_output_dir, nifti_image
from samora_monai.errors import InputError
from samora_monai.synthetic.body import draw_lungs, draw_spine, draw_wall
from samora_monai.synthetic.organs import Kidney, contrast_phase, draw_liver, draw_pancreas, draw_spleen
from samora_monai.synthetic.scanner import acquire
from samora_monai.synthetic.tubes import draw_bowel, draw_great_vessels, draw_mesentery, draw_stomach
from samora_monai.synthetic.volume import Volume

CLASS_NAMES = ("background", "spleen", "right kidney", "left kidney", "liver", "aorta")
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER, AORTA = range(1, 6)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "RPI", "SAL")
OBLIQUE_DEGREES = 10.0


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
        niftis = dict(zip(("image", "label"), make_phantom(case, shape, seed), strict=True))
        for part, file in entry.items():
            (root / file).parent.mkdir(exist_ok=True)
            nib.save(niftis[part], root / file)
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
    hu, label = draw_abdomen(size, rng)
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


def draw_abdomen(size: tuple[int, int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the image `[X, Y, Z]` in HU, float32, and the label, uint8, of a random abdomen on a RAS grid."""
    v = Volume(size, rng)
    density = contrast_phase(rng)
    body, cavity = draw_wall(v)
    draw_spine(v, body)
    draw_lungs(v, cavity)
    right, left = Kidney(v, 1), Kidney(v, -1)
    draw_mesentery(v, density)
    draw_bowel(v, density)
    draw_stomach(v, density)
    draw_pancreas(v, density)
    draw_liver(v, density, cavity, right, LIVER)
    draw_spleen(v, density, cavity, left, SPLEEN)
    right.draw(density, RIGHT_KIDNEY)
    left.draw(density, LEFT_KIDNEY)
    draw_great_vessels(v, density, right.hilum, left.hilum, LIVER, AORTA)
    return acquire(v, body), v.label


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
