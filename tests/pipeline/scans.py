"""Small scans in odd layouts, written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from samora_monai.networks import build_segmenter
from samora_monai.pipeline.folders import find_folder
from samora_monai.pipeline.plan import Plan
from samora_monai.pipeline.planning import make_plan

LAS = np.diag([-1.0, 1, 1, 1])
SHAPE = (20, 24, 12)
OPTIONS: dict[str, Any] = {
    "hours": None,
    "modality": None,
    "encoder": "sam2_mini",
    "decoder": "sam",
    "steps": 40,
    "device": "cpu",
    "jobs": None,
    "seed": 0,
}


def write(file: Path, array: np.ndarray, affine: np.ndarray = LAS) -> Path:
    """Write a NIfTI file, and make its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)
    return file


def ct(file: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = LAS) -> Path:
    """A scan in Hounsfield units with air."""
    array = np.random.default_rng(seed).integers(-100, 200, shape).astype(np.int16)
    array[0] = -1000
    return write(file, array, affine)


def mr(file: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = LAS) -> Path:
    """A scan in arbitrary units."""
    return write(file, np.random.default_rng(seed).integers(0, 900, shape).astype(np.int16), affine)


def labels(file: Path, *values: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray = LAS) -> Path:
    """A label map that holds 0 and `values`."""
    array = np.zeros(shape, np.uint8)
    for i, value in enumerate(values):
        array[i + 1, :4, :] = value
    return write(file, array, affine)


def base(folder: Path) -> str:
    """A random base of the size of the stand-in."""
    file = folder / "base.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(build_segmenter("sam2_mini", 128, 1, 4, experts=()).state_dict(), file)
    return str(file)


def planned(folder: Path, run: Path, **options: Any) -> Plan:
    """Make the plan of a folder with a random base and few steps."""
    return make_plan(
        folder, find_folder(folder, run), run, **{**OPTIONS, "checkpoint": base(run.parent / "weights"), **options}
    )
