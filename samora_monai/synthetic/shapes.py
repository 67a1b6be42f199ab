"""Synthetic textured images with labels, to pretrain a base where SAM's weights are not available.

The slices are unrelated images: overlapping shapes of five kinds on a background, each region with its own texture,
grey level, edge blur and shading. Neighbouring regions differ in level or only in texture, and the class of a shape is
the kind of its outline, so that an encoder learns edges, textures and form. There is no anatomy.

    python -m samora_monai.synthetic.shapes DIR --training 24 --validation 4
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from samora_monai.data.datalist import datalist_text, write_datalist
from samora_monai.data.label_files import check_output_dir
from samora_monai.errors import InputError

CLASS_NAMES = ("background", "ellipse", "polygon", "blob", "ring", "striped rectangle")
ELLIPSE, POLYGON, BLOB, RING, RECTANGLE = range(1, 6)
HU_RANGE = (-125.0, 275.0)  # grey 0 and 1, so that the window for abdominal CT applies
MOST_SHAPES = 6


def write_shapes(
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
        entry = {part: f"{part}s{end}/shapes_{case:03d}.nii.gz" for part in ("image", "label")}
        for file, arrays in zip(entry.values(), zip(*pairs, strict=True), strict=True):
            nifti = nib.Nifti1Image(np.stack(arrays, axis=-1), np.eye(4))
            nifti.header.set_xyzt_units("mm")
            (root / file).parent.mkdir(exist_ok=True)
            nib.save(nifti, root / file)
        lists["training" if end == "Tr" else "validation"].append(entry)
    source = "synthetic, made by samora_monai.synthetic.shapes"
    return write_datalist(root, datalist_text("textured shapes", source, "CT", CLASS_NAMES, lists))


def make_slice(seed: int | tuple[int, ...], side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Make one slice: image `[side, side]` int16 in `HU_RANGE`, label `[side, side]` uint8 of `CLASS_NAMES`."""
    rng = np.random.default_rng(seed)
    grey = _region(rng, side)
    label = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(2, MOST_SHAPES + 1)):
        kind = int(rng.integers(1, len(CLASS_NAMES)))
        distance, depth = _outline(rng, side, kind)
        inside = _region(rng, side, striped=kind == RECTANGLE) + rng.normal(0, 0.12) * depth  # shaded like a solid
        edge = rng.uniform(1, 1 + 0.03 * side)  # width in pixels over which the region fades in
        cover = np.clip(0.5 - distance / edge, 0, 1)
        grey = grey + cover * (inside - grey)
        label[cover > 0.5] = kind
    grey = ndimage.gaussian_filter(grey, rng.uniform(0.2, 0.8)) + rng.uniform(0.005, 0.03) * rng.normal(size=grey.shape)
    low, high = HU_RANGE
    return np.round(low + (high - low) * np.clip(grey, 0, 1)).astype(np.int16), label


def _grid(side: int, center: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return two coordinates `[side, side]` in pixels about `center`, rotated by `angle`."""
    x, y = np.arange(side)[:, None] - center[0], np.arange(side)[None, :] - center[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _outline(rng: np.random.Generator, side: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a shape of this kind at a random position.

    Returns:
        Distance `[side, side]` to the outline in pixels, negative inside (to first order near the outline), and the
        depth of a rounded solid, from 1 in the middle to 0 at the outline and -1 far outside.
    """
    u, v = _grid(side, rng.uniform(0.15, 0.85, 2) * side, rng.uniform(0, 2 * np.pi))
    size = rng.uniform(0.1, 0.27) * side
    slimness = rng.uniform(0.45, 1)
    if kind == RECTANGLE:
        distance = np.maximum(np.abs(u) - size, np.abs(v) - slimness * size)
    elif kind in (ELLIPSE, RING):
        radius = np.hypot(u, v / slimness)
        # divided by the slope of the radius, this is a distance
        distance = (radius - size) * np.maximum(radius, 1) / np.maximum(np.hypot(u, v / slimness**2), 1)
        if kind == RING:
            distance = np.abs(distance) - rng.uniform(0.12, 0.22) * size
    else:
        around = np.arctan2(v, u) + np.pi
        limit = size * (_polygon(rng, around) if kind == POLYGON else _blob(rng, around))
        distance = np.hypot(u, v) - limit
    return distance, np.clip(-distance / size, -1, 1)


def _polygon(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """Return the radius at each angle (0 to 2 pi) of a polygon with 3 to 6 corners, or of a star with 4 to 6 points."""
    star = rng.random() < 0.5
    corners = 2 * rng.integers(4, 7) if star else rng.integers(3, 7)
    radii = rng.uniform(0.85, 1.25, corners)
    if star:
        radii[::2] *= rng.uniform(0.4, 0.6)
    angles = (np.arange(corners) + rng.uniform(0, 0.4, corners) * (corners > 3)) * 2 * np.pi / corners
    angles -= angles[0]
    k = np.searchsorted(angles, around % (2 * np.pi), side="right") - 1  # the previous corner
    first, second = radii[k], radii[(k + 1) % corners]
    since = (around - angles[k]) % (2 * np.pi)
    width = (angles[(k + 1) % corners] - angles[k]) % (2 * np.pi)
    # straight line between two points in polar coordinates
    return first * second * np.sin(width) / (first * np.sin(since) + second * np.sin(width - since))


def _blob(rng: np.random.Generator, around: np.ndarray) -> np.ndarray:
    """Return the radius at each angle of a smooth closed curve with 2 to 5 bulges."""
    radius = np.ones_like(around)
    for waves in range(2, 6):
        radius += rng.uniform(0.2, 0.5) / waves * np.cos(waves * around + rng.uniform(0, 2 * np.pi))
    return np.clip(radius, 0.3, 1.7)


def _region(rng: np.random.Generator, side: int, striped: bool = False) -> np.ndarray:
    """Return grey values `[side, side]` of one material: level, contrast, texture and a linear shading."""
    textures = (_noise, _noise, _noise, _grating, _speckle)
    texture = _grating(rng, side, square=True) if striped else textures[rng.integers(len(textures))](rng, side)
    contrast = rng.uniform(0.1, 0.2) if striped else rng.choice([0.02, 0.05, 0.1, 0.15])
    along, _ = _grid(side, np.array([side, side]) / 2, rng.uniform(0, 2 * np.pi))
    return rng.uniform(0.1, 0.9) + contrast * texture + rng.normal(0, 0.12) * along / side


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return noise of one octave between 3 pixels and a quarter of the image, often longer in one direction."""
    fx, fy = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    angle, length = rng.uniform(0, np.pi), np.exp(rng.uniform(0, np.log(4)))
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
    wavelength = np.exp(rng.uniform(np.log(3), np.log(side / 4)))
    octaves = np.log2(np.hypot(length * along, across) * wavelength + 1e-6)
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * np.exp(-2 * octaves**2)
    return _standard(np.fft.irfft2(spectrum, s=(side, side)))


def _grating(rng: np.random.Generator, side: int, square: bool = False) -> np.ndarray:
    """Return slightly bent parallel waves, or stripes with hard edges, 5 pixels to an eighth of the image apart."""
    along, across = _grid(side, np.zeros(2), rng.uniform(0, np.pi))
    wavelength = np.exp(rng.uniform(np.log(5), np.log(max(side / 8, 6))))
    bend = rng.uniform(0, 0.6) * np.sin(2 * np.pi * across / (rng.uniform(0.5, 2) * side))
    wave = np.sin(2 * np.pi * along / wavelength + bend * side / 32 + rng.uniform(0, 2 * np.pi))
    return _standard(np.clip(3 * wave, -1, 1) if square else wave)


def _speckle(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return the amplitude of random waves, as in ultrasound: grains of 1 to 3 pixels with long bright tails."""
    waves = rng.normal(size=(2, side, side))
    return _standard(np.hypot(*ndimage.gaussian_filter(waves, (0, *[rng.uniform(0.5, 1.5)] * 2))))


def _standard(texture: np.ndarray) -> np.ndarray:
    """Normalise to mean 0 and standard deviation 1, and clip at 3."""
    return np.clip((texture - texture.mean()) / texture.std(), -3, 3)


def main() -> None:
    """Write shapes from the command line."""
    parser = argparse.ArgumentParser(description="Write synthetic textured shapes with labels.")
    parser.add_argument("folder", help="folder to write to")
    parser.add_argument("--training", type=int, default=24, help="training volumes (default 24)")
    parser.add_argument("--validation", type=int, default=4, help="validation volumes (default 4)")
    parser.add_argument("--slices", type=int, default=24, help="slices of each volume (default 24)")
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(write_shapes(args.folder, args.training, args.validation, args.slices, args.side, args.seed))
    except InputError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
