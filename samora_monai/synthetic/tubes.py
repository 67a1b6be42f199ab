"""The tubes of the phantoms: vessels, bowel and stomach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from samora_monai.synthetic.volume import FAT, MUSCLE, Volume


def vessel_tree(
    rng: np.random.Generator,
    start: ArrayLike,
    directions: Sequence[ArrayLike],
    length: float,
    radius: float,
    depth: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the branches of a vessel that starts at a point in some directions, `depth` generations of them.

    Each is its points `[3, 3]` and their radii `[3]`.
    """
    branches = []
    start = np.asarray(start, float)
    for direction in directions:
        way = np.asarray(direction, float) + rng.normal(0, 0.2, 3)
        way /= np.linalg.norm(way)
        middle = start + way * length / 2 + rng.normal(0, 0.08 * length, 3)
        end = start + way * length
        branches.append((np.stack([start, middle, end]), radius * np.array([1.0, 0.9, 0.8])))
        if depth > 1:
            side = np.cross(way, rng.normal(size=3))
            side *= rng.uniform(0.4, 0.9) / np.linalg.norm(side)
            branches += vessel_tree(rng, end, [way + side, way - side], 0.75 * length, 0.72 * radius, depth - 1)
    return branches


def draw_mesentery(v: Volume, density: Mapping[str, float]) -> None:
    """Draw small arteries and veins that fan out to the bowel."""
    for name in ("artery", "portal"):
        fan = [(np.cos(a), 0.6 * np.sin(a) + 0.3, -0.7) for a in v.rng.uniform(0, np.pi, 5)]
        for points, radii in vessel_tree(v.rng, (0, 0.08, 0.42), fan, 0.24, 0.017, 3):
            box, distance = v.tube(points, radii)
            v.paint(distance, density[name], box=box)


def draw_bowel(v: Volume, density: Mapping[str, float]) -> None:
    """Draw loops of small bowel, and the colon around them, with contents and gas."""
    rng = v.rng
    for _ in range(11):
        point, way = rng.uniform((-0.45, 0.0, 0.0), (0.45, 0.36, 0.36)), rng.normal(size=3)
        line = [point]
        for _ in range(9):
            way = 0.6 * way + rng.normal(0, 0.8, 3) * (1, 1, 0.7)
            way -= np.subtract(point, (0, 0.2, 0.15)) * (1.5, 2.25, 2.25)  # stay in the middle
            point = point + 0.09 * way / np.linalg.norm(way)
            line.append(point)
        _draw_loop(v, np.array(line), rng.uniform(0.05, 0.08), density["bowel"], rng.uniform(15, 45), 0.15)
    colon = (
        [(0.6, -0.02, -0.2), (0.58, 0.0, 0.1), (0.55, 0.08, 0.28), (0.48, 0.24, 0.34)],
        [(0.48, 0.26, 0.34), (0.25, 0.36, 0.33), (0.0, 0.39, 0.3), (-0.25, 0.37, 0.4), (-0.5, 0.22, 0.6)],
        [(-0.52, 0.16, 0.62), (-0.6, -0.02, 0.45), (-0.59, -0.06, 0.2), (-0.57, 0.0, -0.2)],
    )
    for part in colon:
        points = _dense(part + rng.uniform(-0.04, 0.04, (len(part), 3)), 5)
        haustra = 1 + 0.14 * np.sin(2.1 * np.arange(len(points)) + rng.uniform(0, 6))
        radii, gas = rng.uniform(0.065, 0.095) * haustra, rng.uniform(0.2, 0.8)
        _draw_loop(v, points, radii, density["bowel"] - 15, rng.uniform(10, 60), gas, bubbles=260)


def _dense(points: Sequence[ArrayLike] | np.ndarray, times: int) -> np.ndarray:
    """Return `times` as many points on the same line."""
    points = np.array(points, float)
    at = np.linspace(0, len(points) - 1, (len(points) - 1) * times + 1)
    return np.stack([np.interp(at, np.arange(len(points)), values) for values in points.T], axis=1)


def _draw_loop(
    v: Volume, points: np.ndarray, radii: ArrayLike, wall: float, contents: float, gas: float, bubbles: float = 0
) -> None:
    """Draw a loop with its wall, its contents, in them bubbles, and gas in front of them with this probability."""
    box, distance = v.tube(points, radii)
    texture = v.fine[box]
    distance += 0.008 * texture
    v.paint(distance - 0.008, FAT, box=box, part=0.7)
    v.paint(distance, wall + 4 * texture, box=box)
    lumen = distance + 0.022
    v.paint(lumen, contents + 8 * texture - bubbles * np.clip(texture - 0.5, 0, 1.5), box=box)
    if v.rng.random() < gas:
        level = v.rng.choice(points)[1] + v.rng.uniform(-0.4, 0.2) * np.max(radii)
        v.paint(np.maximum(lumen, level - v.y[box]), -850, box=box)


def draw_stomach(v: Volume, density: Mapping[str, float]) -> None:
    """Draw a curved bag with folds, contents in its back and, most often, gas in front of them."""
    rng = v.rng
    center = v.vary((-0.28, 0.18, 0.82), 0.03)
    line = np.add(center, [(-0.14, -0.16, 0.22), (-0.08, -0.04, 0.06), (0.04, 0.06, -0.08), (0.24, 0.03, -0.18)])
    radii = np.interp(np.linspace(0, 3, 10), range(4), (0.21, 0.23, 0.16, 0.09))
    box, distance = v.tube(_dense(line, 3), radii * rng.uniform(0.8, 1.1))
    texture = v.fine[box]
    v.paint(distance - 0.012, FAT, box=box, part=0.8)
    v.paint(distance, density["bowel"] + 3 * texture, box=box)
    lumen = distance + 0.032 + 0.012 * texture
    v.paint(lumen, rng.uniform(15, 70) + 16 * texture, box=box)
    if rng.random() < 0.8:
        level = center[1] + rng.uniform(-0.02, 0.12)
        v.paint(np.maximum(lumen, level - v.y[box]), -880, box=box)


def draw_great_vessels(
    v: Volume, density: Mapping[str, float], right_hilum: np.ndarray, left_hilum: np.ndarray, liver: int, label: int
) -> None:
    """Draw cava and aorta with their branches, the portal vein, and the crura of the diaphragm.

    Args:
        v: with the organs.
        density: of the tissues, in HU.
        right_hilum, left_hilum: where the vessels of the kidneys end.
        liver: label of the liver, into which the portal vein leads.
        label: of the aorta.
    """
    rng = v.rng
    z = np.linspace(-0.3, 1.3, 9)
    sway = 0.02 * np.sin(3 * z + rng.uniform(0, 6)) + rng.uniform(-0.02, 0.02)
    aorta = np.stack([-0.055 + sway, -0.105 + 0.02 * np.cos(3 * z), z], axis=1)
    cava = np.stack([0.135 + sway, -0.1 + 0.06 * z.clip(0, 1), z], axis=1)
    artery, vein, portal = density["artery"], density["vein"], density["portal"]
    for side in (-1, 1):
        crus = [(side * 0.1, -0.12, 1.1), (side * 0.11, -0.16, 0.75), (side * 0.1, -0.2, 0.4)]
        box, distance = v.tube(crus, (0.03, 0.03, 0.015))
        v.paint(distance, MUSCLE, box=box)

    origin, renal = np.add(aorta[4], (0, 0, 0.05)), np.add(aorta[3], (0, 0, 0.06))
    celiac = np.add(origin, (0, 0.16, 0.03))
    behind = np.array((0, -0.03, 0))
    branches: list[tuple[list[ArrayLike], float, float]] = [
        ([left_hilum, (-0.12, 0.015, 0.42), (0.12, -0.05, 0.42)], 0.024, vein),
        ([right_hilum, (0.13, -0.06, 0.4)], 0.026, vein),
        ([left_hilum + behind, renal], 0.018, artery),
        ([right_hilum + behind, (0.15, -0.17, 0.4), renal], 0.018, artery),
        ([origin, celiac, np.add(celiac, (-0.2, -0.02, 0.05)), (-0.5, -0.08, 0.72)], 0.02, artery),  # splenic
        ([celiac, np.add(celiac, (0.15, 0, 0.03))], 0.018, artery),  # hepatic
        ([origin, np.add(origin, (0.01, 0.14, -0.1)), (-0.02, 0.06, 0.0)], 0.022, artery),  # mesenteric
        ([(0.15, 0.06, 0.64), (0.07, 0.09, 0.5), (0.05, 0.1, 0.0)], 0.034, portal),
        ([(0.08, 0.09, 0.52), (-0.2, 0.03, 0.6), (-0.48, -0.09, 0.72)], 0.024, portal),  # splenic
    ]
    for line, radius, hu in branches:
        points = _dense(line, 4)
        points[1:-1] += rng.normal(0, 0.012, points[1:-1].shape)  # winding
        box, distance = v.tube(points, radius * rng.uniform(0.85, 1.1))
        free = (v.label[box] == 0) | ((v.label[box] == liver) & (hu == portal))
        v.paint(distance, hu, None, box, free)

    box, distance = v.tube(cava, rng.uniform(0.062, 0.078) * (0.9 + 0.2 * z.clip(0, 1)))
    v.paint(distance - 0.01, FAT, box=box, part=0.5 * (v.label[box] != liver))
    v.paint(distance + 0.01 * v.coarse[box], vein + 5 * v.coarse[box], box=box)
    box, distance = v.tube(aorta, rng.uniform(0.084, 0.096) * (0.88 + 0.15 * z.clip(0, 1)))
    v.paint(distance - 0.012, FAT, box=box, part=0.6)
    v.paint(distance + 0.004 * v.coarse[box], artery + 3 * v.fine[box], label, box)
    plaque = (np.abs(distance) < 0.012) & (v.fine[box] > rng.uniform(1.6, 3.2)) & (v.label[box] == label)
    v.hu[box][plaque] += 250
