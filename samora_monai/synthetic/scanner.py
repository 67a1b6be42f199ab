"""What the scanner adds to the phantoms: the table, blur, noise and streaks."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samora_monai.synthetic.volume import Volume


def draw_table(v: Volume, body: np.ndarray) -> None:
    """Draw the two shells of the table under the patient, who fills this part of each voxel."""
    rows = np.flatnonzero(body.max(axis=(0, 2)) > 0.5)
    back = v.axes[1][rows[0]] if len(rows) else -0.8
    x, y = v.axes[0][:, None, None], v.axes[1][None, :, None]
    for gap, hu in ((0.06, 250), (0.13, 0)):
        shell = np.abs(y - (back - gap + 0.16 * x**2)) - 0.009
        v.hu += v.cover(shell) * (np.abs(x) < 0.85) * (1 - body) * (hu + 1000)


def acquire(v: Volume, body: np.ndarray) -> np.ndarray:
    """Return the image `[X, Y, Z]` in HU: blurred, with correlated noise that is stronger in the centre, and streaks.

    Args:
        v: with all tissues.
        body: how much of each voxel the patient fills, 0 to 1.
    """
    rng = v.rng
    hu = ndimage.gaussian_filter(v.hu, (0.45, 0.45, 0.35))
    path = 1 - np.clip((v.x / 0.95) ** 2 + (v.y / 0.75) ** 2, 0, 1)  # through the patient: fewer photons arrive
    noise = rng.uniform(8, 15)  # HU
    grains, streaks = rng.standard_normal((2, *hu.shape), dtype=np.float32)
    grains = ndimage.gaussian_filter(grains, (0.7, 0.7, 0.3))
    grains -= 0.7 * ndimage.gaussian_filter(grains, (1.6, 1.6, 0))  # the reconstruction suppresses slow waves
    hu += noise * (0.55 + 0.75 * path) * grains / grains.std()
    streaks = ndimage.gaussian_filter(streaks, (14, 0.5, 0))
    hu += rng.uniform(0.1, 0.35) * noise * path * streaks / streaks.std()
    hu += body * (rng.uniform(-6, 0) * path + 3 * v.field(0.6))  # beam hardening
    return np.clip(hu, -1000, 1500)
