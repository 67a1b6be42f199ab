"""The solid organs of the phantoms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samora_monai.synthetic.tubes import vessel_tree
from samora_monai.synthetic.volume import FAT, Volume

# HU in the late arterial, the portal venous and the nephrographic phase
PHASES = {
    "artery": (205, 158, 125),
    "vein": (100, 146, 126),
    "portal": (140, 168, 132),
    "liver": (82, 108, 98),
    "spleen": (132, 122, 106),
    "cortex": (185, 190, 165),
    "medulla": (95, 145, 160),
    "pancreas": (100, 90, 80),
    "bowel": (95, 85, 75),
}


def contrast_phase(rng: np.random.Generator) -> dict[str, float]:
    """Return the density of each tissue in HU at a random time after the injection, most often in the portal phase."""
    time = 2 * rng.beta(2, 2)
    return {name: float(np.interp(time, (0, 1, 2), hu) * rng.uniform(0.94, 1.06)) for name, hu in PHASES.items()}


class Kidney:
    """A kidney, drawn after the organs around it, which leave room for its fat.

    Args:
        v: the volume.
        side: 1 right, -1 left.
    """

    def __init__(self, v: Volume, side: int) -> None:
        self.v, self.side = v, side
        rng = v.rng
        self.center = v.vary((side * 0.4, -0.23, 0.34 if side == 1 else 0.41), 0.03)
        self.hilum = np.add(self.center, (-side * 0.115, 0.055, 0))
        self.turn = (side * rng.uniform(15, 40), side * rng.uniform(-12, -4), rng.uniform(-8, 8))
        axes = np.array([0.145, 0.175, 0.295]) * rng.uniform(0.9, 1.06) * rng.uniform(0.95, 1.05, 3)
        self.distance = v.ellipsoid(self.center, axes, self.turn) + 0.009 * v.coarse

    def room(self) -> np.ndarray:
        """Return the distance to the space of the kidney and its fat, which reaches to the wall behind it."""
        behind = np.add(self.center, (-self.side * 0.02, -0.15, -0.02))
        behind = self.v.ellipsoid(behind, (0.18, 0.2, 0.32), self.turn)
        return np.minimum(self.distance - self.v.rng.uniform(0.01, 0.03), behind)

    def draw(self, density: Mapping[str, float], label: int) -> None:
        """Draw cortex, medulla, and the sinus with fat and pelvis, which has no label."""
        v = self.v
        sinus = v.ellipsoid(np.add(self.hilum, (self.side * 0.015, -0.01, 0)), (0.085, 0.05, 0.13), self.turn)
        sinus += 0.018 * v.fine
        v.paint(self.distance - 0.02, FAT + 4 * v.fine)
        v.paint(self.distance, v.tissue(density["cortex"]), label)
        pyramids = np.maximum(self.distance + 0.038, 0.055 - sinus) - 0.012 * v.fine
        v.paint(pyramids, v.tissue(density["medulla"]), label)
        v.paint(sinus, FAT + 20)
        v.paint(sinus + 0.025, 15, part=0.8)


def draw_pancreas(v: Volume, density: Mapping[str, float]) -> None:
    """Draw a lobulated pancreas, from beside the right kidney to the spleen."""
    line = np.array(
        [(0.14, 0.06, 0.4), (0.1, 0.1, 0.48), (-0.05, 0.12, 0.56), (-0.25, 0.06, 0.62), (-0.45, -0.05, 0.68)]
    )
    line += v.rng.uniform(-0.025, 0.025, line.shape)
    box, distance = v.tube(line, np.array([0.06, 0.06, 0.042, 0.042, 0.03]) * v.rng.uniform(0.85, 1.15))
    v.paint(distance + 0.013 * v.fine[box], v.tissue(density["pancreas"], 3, 8)[box], box=box)


def draw_liver(v: Volume, density: Mapping[str, float], cavity: np.ndarray, kidney: Kidney, label: int) -> None:
    """Draw two lobes that fill the right upper abdomen, hepatic and portal veins in them, and the gallbladder below."""
    rng = v.rng
    right = v.organ((0.46, 0.04, 0.82), (0.4, 0.5, rng.uniform(0.46, 0.56)), (-8, 8, 0), 0.02)
    left = v.organ((0.04, 0.3, 0.92), (rng.uniform(0.34, 0.48), 0.17, 0.27), (-10, 0, 0), 0.015)
    fissure = v.ellipsoid(v.vary((0.13, 0.36, 0.72)), (0.018, 0.15, 0.22), (15, 0, 0))
    hilum = v.ellipsoid(v.vary((0.16, 0.05, 0.62)), (0.09, 0.08, 0.1), (20, 0, 0)) + 0.02 * v.fine
    outside = np.minimum.reduce([fissure - 0.01, hilum - 0.01, kidney.room()])
    liver = np.maximum.reduce([np.minimum(right, left), cavity + 0.012, -outside])
    v.paint(liver - 0.012, FAT)
    v.paint(liver, v.tissue(density["liver"], 4, 4), label)
    within = v.cover(liver + 0.015)
    to_portal, to_veins = [(0.7, -0.1, 0.25), (-0.35, 0.6, 0.45)], [(0.9, 0, -0.3), (0.5, 0.7, -0.3), (-0.2, 0.9, -0.1)]
    portal = vessel_tree(rng, (0.14, 0.06, 0.64), to_portal, 0.2, 0.046, 4)
    veins = vessel_tree(rng, (0.15, -0.1, 0.97), to_veins, 0.24, 0.046, 3)
    for vessels, name in ((portal, "portal"), (veins, "vein")):
        for points, radii in vessels:
            box, distance = v.tube(points, radii)
            v.paint(distance, density[name], None, box, within[box])
    gallbladder = v.organ((0.3, 0.27, 0.5), (0.065, 0.1, 0.1), (25, 0, 15))
    v.paint(gallbladder - 0.008, 65)
    v.paint(gallbladder, v.tissue(10, 1, 2))


def draw_spleen(v: Volume, density: Mapping[str, float], cavity: np.ndarray, kidney: Kidney, label: int) -> None:
    """Draw a crescent along the left wall."""
    outer = v.organ((-0.58, -0.12, 0.77), (0.17, 0.3, 0.25), (-18, 0, 0), 0.014)
    medial = v.organ((-0.33, -0.02, 0.74), (0.16, 0.24, 0.24), (-10, 0, 0), 0.02)
    spleen = np.maximum.reduce([outer, -medial, -kidney.room(), cavity + 0.015])
    v.paint(spleen - 0.015, FAT)
    v.paint(spleen, v.tissue(density["spleen"], 4, 3), label)
