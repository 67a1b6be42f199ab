"""Read the prompts in a request of 3D Slicer or OHIF.

Both send `foreground` and `background`, lists of voxels [i, j, k]. 3D Slicer adds `slice` for models of one slice, and
a box: `roi`, [i, i, j, j, k, k] with each pair in any order, as its axes may be opposite to those of the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from samora_monai.errors import InputError
from samora_monai.inference.clicks import Point, SlicePrompts

MOST_POINTS = 200


def prompts_of(
    request: Mapping[str, Any], shape: Sequence[int], axis: int, one_slice: bool
) -> tuple[dict[int, SlicePrompts], range | None]:
    """Read the prompts of a request.

    Args:
        request: parameters of a request.
        shape: of the image, `(X, Y, Z)`.
        axis: of the image, along which it is cut into slices.
        one_slice: whether a single slice is segmented: that of the last point inside the object, else of the last
            point, else `slice` or `sidx` if the box contains it, else the middle of the box.

    Returns:
        the prompts by slice, and the slices that the box contains, None without a box.

    Raises:
        InputError: a value has another form, or a point is outside of the image.
    """
    points = {name: _points(request.get(name), name, shape) for name in ("foreground", "background")}
    if sum(map(len, points.values())) > MOST_POINTS:
        raise InputError(f"got {sum(map(len, points.values()))} points, expected at most {MOST_POINTS}")
    box, slices = _box(request.get("roi"), shape, axis)
    touched = sorted({point[axis] for given in points.values() for point in given})
    if one_slice:
        last = [*points["background"], *points["foreground"]][-1:]
        chosen = [last[0][axis]] if last else _wanted_slice(request, slices)
    elif slices is not None:
        chosen = [index for index in touched if index in slices] or [slices[len(slices) // 2]]
    else:
        chosen = touched

    def in_slice(name: str, index: int) -> tuple[Point, ...]:
        inside = (p for p in points[name] if p[axis] == index)
        return tuple((float(first), float(second)) for first, second in (_plane(p, axis) for p in inside))

    prompts = {
        index: SlicePrompts(in_slice("foreground", index), in_slice("background", index), box) for index in chosen
    }
    return prompts, slices


def _plane(values: Sequence[Any], axis: int) -> list[Any]:
    """The values of both other axes."""
    return [value for i, value in enumerate(values) if i != axis]


def _points(given: Any, name: str, shape: Sequence[int]) -> list[tuple[int, ...]]:
    if given in (None, ""):
        return []
    if not isinstance(given, list) or not all(_numbers(point, 3) for point in given):
        raise InputError(f"{name} must be a list of voxels [i, j, k], got {str(given)[:80]}")
    points = [tuple(round(value) for value in point) for point in given]
    for point in points:
        if not all(0 <= value < side for value, side in zip(point, shape, strict=True)):
            raise InputError(f"{name} has the point {list(point)}, outside of the image of {list(shape)} voxels")
    return points


def _box(given: Any, shape: Sequence[int], axis: int) -> tuple[tuple[float, float, float, float] | None, range | None]:
    """The box in the plane, and its slices, both clipped to the image."""
    if given in (None, "", []):
        return None, None
    if not _numbers(given, 6):
        raise InputError(f"roi must be six numbers [i, i, j, j, k, k], got {str(given)[:80]}")
    sides = []
    for low, high, side in zip(given[::2], given[1::2], shape, strict=True):
        low, high = sorted((round(low), round(high)))
        if high < 0 or low >= side:
            raise InputError(f"roi {given} is outside of the image of {list(shape)} voxels")
        sides.append((max(low, 0), min(high, side - 1)))
    (first_row, last_row), (first_column, last_column) = _plane(sides, axis)
    return (first_row, first_column, last_row, last_column), range(sides[axis][0], sides[axis][1] + 1)


def _wanted_slice(request: Mapping[str, Any], slices: range | None) -> list[int]:
    """The slice of a box without points; 3D Slicer sends a position in mm as `slice`, which need not be in the box."""
    if slices is None:
        return []
    wanted = next((request[name] for name in ("slice", "sidx") if isinstance(request.get(name), int)), None)
    return [wanted if wanted in slices else slices[len(slices) // 2]]


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    )
