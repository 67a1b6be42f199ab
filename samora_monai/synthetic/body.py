"""What surrounds the organs of the phantoms: the wall of the body, the spine, and the lungs."""

from __future__ import annotations

import numpy as np

from samora_monai.synthetic.scanner import draw_table
from samora_monai.synthetic.volume import FAT, MUSCLE, Volume


def draw_wall(v: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Draw skin, subcutaneous fat, the muscles of the wall, ribs, visceral fat, and the table.

    Later structures are limited to the cavity.

    Returns:
        How much of each voxel the patient fills, and the distance to the cavity, `[X, Y, Z]` each.
    """
    rng = v.rng
    around = np.arctan2(v.y, v.x)
    back, front, sides = np.clip(-np.sin(around), 0, 1), np.clip(np.sin(around), 0, 1), np.cos(around) ** 2
    wide, deep, power = rng.uniform(0.72, 0.76), rng.uniform(0.49, 0.53), rng.uniform(2.3, 2.8)
    radius = (np.abs(v.x / wide) ** power + np.abs((v.y - 0.07) / deep) ** power) ** (1 / power)
    cavity = (radius - 1) * np.hypot(wide * np.cos(around), deep * np.sin(around)) + 0.008 * v.coarse

    muscle = rng.uniform(0.045, 0.06) * (0.65 + 0.6 * sides) + 0.16 * back**2 * (1 - sides**2)  # thickness
    muscle *= 1 - 0.6 * np.exp(-((v.x / 0.03) ** 2)) * (v.y > 0)  # linea alba
    fat = 0.7 + 0.5 * front + 0.8 * back * np.abs(np.sin(2 * around)) + 0.25 * v.field(0.5)
    fat = np.clip(rng.uniform(0.03, 0.12) * fat, 0.02, 0.16)
    erectors = [v.organ((side * 0.18, -0.53, 0.5), (0.15, 0.115, 9), (side * 10, 0, 0)) for side in (-1, 1)]
    outlines = np.stack([cavity - muscle, *erectors])
    outline = -0.04 * np.log(np.exp(np.clip(-outlines / 0.04, -40, 40)).sum(axis=0))  # their rounded union

    skin = outline - fat - 0.018
    body = v.cover(skin)
    draw_table(v, body)
    v.paint(skin, 20)
    v.paint(skin + 0.018, FAT - 5 + 3 * v.fine + 40 * v.strands(0.08, 0.1))
    between = np.exp(-(((cavity - 0.5 * muscle) / 0.006) ** 2)) * (v.y > -0.2)  # fat between two layers
    marbling = 60 * np.clip(v.field(0.06) - 1.3, 0, 1)
    v.paint(cavity - muscle, v.tissue(MUSCLE) - 60 * between - marbling)
    for erector in erectors:
        v.paint(erector - 0.01, FAT)
        v.paint(erector, v.tissue(MUSCLE + 3) - 1.5 * marbling)
    _draw_ribs(v, cavity - 0.55 * muscle.clip(0.04, 0.08))
    v.paint(cavity, FAT + 4 * v.coarse + 40 * v.strands(0.1, 0.08))
    v.inside = v.cover(cavity)
    return body, cavity


def _draw_ribs(v: Volume, depth: np.ndarray) -> None:
    """Draw ribs at depth 0 in the wall; they descend towards the front, and are open there and below."""
    spacing = v.rng.uniform(0.145, 0.17)
    along = v.z + 0.3 * np.sin(np.arctan2(v.y, v.x)) + v.rng.uniform(0, spacing)
    rib = np.hypot(depth, 1.1 * spacing * np.abs((along / spacing) % 1 - 0.5)) - 0.021
    bony = (v.y < 0.33) & (v.z > 0.3 + 0.35 * (v.y + 0.3))
    v.paint(rib, 420 + 40 * v.fine, part=bony)
    v.paint(rib + 0.016, 190, part=bony)  # marrow


def draw_spine(v: Volume, body: np.ndarray) -> None:
    """Draw vertebrae with cortex, marrow, discs and processes, and the muscles in front of them.

    Args:
        v: with the wall; later structures are also kept out of the spine and the psoas.
        body: how much of each voxel the patient fills.
    """
    rng = v.rng
    inside, v.inside = v.inside, body
    hard, marrow, height = rng.uniform(330, 520), rng.uniform(130, 210), rng.uniform(0.17, 0.2)
    level = (v.z / height + rng.uniform(0, 1)) % 1  # of a vertebra; a disc is at 0 and 1
    disc = np.exp(-((height * np.minimum(level, 1 - level) / 0.018) ** 2))
    occupied = []
    for side in (-1, 1):
        psoas = np.hypot(v.x - side * (0.2 - 0.05 * v.z), (v.y + 0.3) / 1.2) - 0.085 * np.clip(1.15 - 0.9 * v.z, 0.1, 1)
        v.paint(psoas, v.tissue(MUSCLE + 5))
        v.paint(v.organ((side * 0.36, -0.385, 0.15), (0.1, 0.045, 0.35), (side * 15, 0, 0)), v.tissue(MUSCLE))
        transverse = v.organ((side * 0.17, -0.425, 0.5), (0.13, 0.022, 9), (side * 20, 0, 0), 0)
        v.paint(transverse, hard, part=level > 0.45)
        facet = v.organ((side * 0.075, -0.45, 0.5), (0.04, 0.035, 9), (0, 0, 0), 0.01)
        v.paint(facet, hard + 40)
        v.paint(facet + 0.018, marrow, part=0.7)
        occupied.append(psoas)
    spinous = v.organ((0, -0.56, 0.5), (0.022, 0.11, 9), (0, 0, 0), 0.006)
    v.paint(spinous, hard, part=(level > 0.2) & (level < 0.9))
    vertebra = v.ellipsoid((0, -0.305, 0.5), (0.135, 0.112, 90))
    vertebra += 0.012 * np.cos(2 * np.pi * level) + 0.004 * v.coarse  # a waist
    v.paint(vertebra, hard)
    v.paint(vertebra + 0.017, marrow + 30 * v.fine)
    v.paint(vertebra, 85 + 4 * v.fine, part=disc)
    canal = v.ellipsoid((0, -0.445, 0.5), (0.055, 0.042, 90))
    v.paint(canal - 0.015, hard, part=np.clip(1.4 - 2 * disc, 0, 1))
    v.paint(canal, 30)
    v.inside = inside * (1 - v.cover(np.minimum.reduce([vertebra, *occupied]) - 0.008))


def draw_lungs(v: Volume, cavity: np.ndarray) -> None:
    """Draw the bases of the lungs, behind and beside liver and spleen, above the diaphragm.

    Args:
        v: with the wall; later structures are also kept below the diaphragm.
        cavity: distance to the cavity of the body.
    """
    rim = np.clip(1 + cavity / 0.42, 0, 1)  # 1 at the wall
    dome = v.rng.uniform(1.08, 1.2) - 0.38 * rim**3 * np.clip(0.65 - v.y, 0, 1.2) + 0.02 * v.coarse
    lung = dome - v.z
    v.paint(lung, -860 + 25 * v.fine)
    v.paint(np.abs(lung) - 0.004, MUSCLE, part=0.8)
    v.inside = v.inside * (1 - v.cover(lung - 0.01))
