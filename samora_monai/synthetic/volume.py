"""A volume that tissues are painted into, by the distance of each voxel to their surfaces, and random smooth fields.

Distances are in the coordinates of the volume, negative inside. A voxel that a surface cuts is mixed from the tissues
on both sides (partial volume), and its label is that of the tissue with the larger part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

Box = tuple[slice, slice, slice]
WHOLE: Box = (slice(None), slice(None), slice(None))
WARP = 0.025  # standard deviation of the displacement of the anatomy
FAT, MUSCLE = -100, 55  # HU


class Volume:
    """An image in HU with a label, on a RAS grid; what is painted later covers what was painted earlier.

    x is from the patient's left (-1) to right (1), y from back (-1) to front (1), z from feet (0) to head (1); a unit
    is about 18 cm. Each patient is of another size, lies a bit differently, and is smoothly deformed.

    Args:
        size: voxels along x, y and z.
        rng: generator of all random numbers.
    """

    def __init__(self, size: tuple[int, int, int], rng: np.random.Generator) -> None:
        self.rng = rng
        ends = ((-1, 1), (-1, 1), (0, 1))
        self.axes = [np.linspace(*end, n, dtype=np.float32) for end, n in zip(ends, size, strict=True)]
        self.pixel = 2 / size[0]
        x, y, z = np.meshgrid(*self.axes, indexing="ij")
        cos, sin = np.cos(angle := np.deg2rad(rng.uniform(-5, 5))), np.sin(angle)
        self.x = self._placed(cos * x - sin * y)
        self.y = self._placed(sin * x + cos * y)
        self.z = self._placed(z - 0.5) + np.float32(0.5)
        self.fine, self.coarse = self.field(0.045), self.field(0.13)  # textures and uneven outlines
        self.hu = np.full(size, -1000, np.float32)
        self.label = np.zeros(size, np.uint8)
        self.inside = np.ones(size, np.float32)  # how much of a voxel can be painted

    def _placed(self, along: np.ndarray) -> np.ndarray:
        """Shift, scale and deform one coordinate, counted from the middle."""
        moved = (along - self.rng.uniform(-0.03, 0.03)) / self.rng.uniform(0.92, 1.06)
        return (moved + WARP * self.field(0.45)).astype(np.float32)

    def field(self, length: float) -> np.ndarray:
        """Return a random field `[X, Y, Z]` with mean 0 and standard deviation 1 that is smooth over this length."""
        weights = []
        for axis in self.axes:
            knots = np.arange(axis[0] - 2 * length, axis[-1] + 2.5 * length, length, dtype=np.float32)
            weight = np.exp(-(((axis[:, None] - knots) / length) ** 2))
            weights.append(weight / np.linalg.norm(weight, axis=1, keepdims=True))
        values = self.rng.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
        for weight in weights:  # each turns the first axis, of knots, into the last, of voxels
            values = np.tensordot(values, weight, (0, 1))
        return values

    def strands(self, length: float, width: float) -> np.ndarray:
        """Return 1 on random thin sheets about `length` apart, and 0 elsewhere, `[X, Y, Z]`."""
        return np.exp(-((self.field(length) / width) ** 2))

    def tissue(self, hu: float, coarse: float = 3, fine: float = 3) -> np.ndarray:
        """Return the densities `[X, Y, Z]` of a soft tissue with its texture."""
        return hu + coarse * self.coarse + fine * self.fine

    def vary(self, center: ArrayLike, spread: float = 0.025) -> np.ndarray:
        """Move a point at random."""
        return np.asarray(center) + self.rng.uniform(-spread, spread, 3)

    def organ(
        self, center: ArrayLike, axes: ArrayLike, degrees: ArrayLike = (0, 0, 0), uneven: float = 0.012
    ) -> np.ndarray:
        """Return the distance to an ellipsoid of random position, size and angle with an uneven surface."""
        axes = np.asarray(axes) * self.rng.uniform(0.9, 1.1, 3) * self.rng.uniform(0.95, 1.05)
        degrees = np.asarray(degrees) + self.rng.uniform(-8, 8, 3)
        return self.ellipsoid(self.vary(center), axes, degrees) + uneven * self.coarse

    def ellipsoid(self, center: ArrayLike, axes: ArrayLike, degrees: ArrayLike = (0, 0, 0)) -> np.ndarray:
        """Return the distance `[X, Y, Z]` to an ellipsoid, to first order near its surface.

        Args:
            center: x, y and z.
            axes: half axes before the rotation.
            degrees: rotation about z, y and x.
        """
        turn = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix().astype(np.float32)
        x, y, z = (a - c for a, c in zip((self.x, self.y, self.z), np.asarray(center, np.float32), strict=True))
        first, second = np.float32(0), np.float32(1e-6)
        for column, axis in zip(turn.T, np.asarray(axes, np.float32), strict=True):
            along = (column[0] * x + column[1] * y + column[2] * z) / axis
            first = first + along**2
            second = second + (along / axis) ** 2
        radius = np.sqrt(first)
        return radius * (radius - 1) / np.sqrt(second)  # the function divided by its slope

    def tube(self, points: ArrayLike, radii: ArrayLike) -> tuple[Box, np.ndarray]:
        """Return the part of the volume around a tube, and there the distance to it.

        Args:
            points: `[N, 3]`, N at least 2, the centre line.
            radii: `[N]`, or one for all.
        """
        points = np.asarray(points, np.float32)
        radii = np.broadcast_to(np.asarray(radii, np.float32), len(points))
        reach = radii.max() + 4 * WARP + 2 * self.pixel
        box = self._box(points.min(axis=0) - reach, points.max(axis=0) + reach)
        distance = np.full(self.hu[box].shape, 9, np.float32)
        for start, end, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            part = self._box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
            x, y, z = (a[part] - c for a, c in zip((self.x, self.y, self.z), start, strict=True))
            dx, dy, dz = end - start
            along = np.clip((dx * x + dy * y + dz * z) / (dx * dx + dy * dy + dz * dz + np.float32(1e-9)), 0, 1)
            across = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2 + (z - along * dz) ** 2)
            local = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            distance[local] = np.minimum(distance[local], across - (r0 + along * (r1 - r0)))
        return box, distance

    def _box(self, low: np.ndarray, high: np.ndarray) -> Box:
        parts = []
        for axis, a, b in zip(self.axes, low, high, strict=True):
            start = min(int(np.searchsorted(axis, a)), len(axis) - 1)
            parts.append(slice(start, max(int(np.searchsorted(axis, b)), start + 1)))
        return parts[0], parts[1], parts[2]

    def cover(self, distance: np.ndarray) -> np.ndarray:
        """Return how much of each voxel is inside, 0 to 1."""
        return np.clip(0.5 - distance / (1.3 * self.pixel), 0, 1)

    def paint(
        self,
        distance: np.ndarray,
        hu: float | np.ndarray,
        label: int | None = 0,
        box: Box = WHOLE,
        part: float | np.ndarray = 1.0,
    ) -> None:
        """Paint a tissue.

        Args:
            distance: to its surface, in `box`.
            hu: its density, a number or one for each voxel of `box`.
            label: None leaves the label as it is.
            box: the part of the volume.
            part: how much of a voxel can be painted, 0 to 1.
        """
        cover = self.cover(distance) * self.inside[box] * part
        self.hu[box] += cover * (hu - self.hu[box])
        if label is not None:
            self.label[box][cover > 0.5] = label
