"""Grey textures of one material, each `[side, side]` with mean 0 and standard deviation 1, clipped at 3."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def random_texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of one octave (three of five times), waves, or speckle."""
    textures = (noise, noise, noise, waves, speckle)
    return textures[rng.integers(len(textures))](rng, side)


def noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise of one octave between 3 pixels and a quarter of the image, often longer in one direction."""
    fx, fy = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    angle, length = rng.uniform(0, np.pi), np.exp(rng.uniform(0, np.log(4)))
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
    wavelength = np.exp(rng.uniform(np.log(3), np.log(side / 4)))
    octaves = np.log2(np.hypot(length * along, across) * wavelength + 1e-6)
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * np.exp(-2 * octaves**2)
    return _standard(np.fft.irfft2(spectrum, s=(side, side)))


def waves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Slightly bent parallel waves, or stripes with hard edges, 5 pixels to an eighth of the image apart."""
    row, column = np.indices((side, side))
    angle = rng.uniform(0, np.pi)
    along, across = np.cos(angle) * row + np.sin(angle) * column, np.cos(angle) * column - np.sin(angle) * row
    wavelength = np.exp(rng.uniform(np.log(5), np.log(max(side / 8, 6))))
    bend = rng.uniform(0, 0.6) * np.sin(2 * np.pi * across / (rng.uniform(0.5, 2) * side))
    wave = np.sin(2 * np.pi * along / wavelength + bend * side / 32 + rng.uniform(0, 2 * np.pi))
    return _standard(np.clip(3 * wave, -1, 1) if rng.random() < 0.3 else wave)


def speckle(rng: np.random.Generator, side: int) -> np.ndarray:
    """The amplitude of random waves, as in ultrasound: grains of 1 to 3 pixels with long bright tails."""
    parts = rng.normal(size=(2, side, side))
    return _standard(np.hypot(*ndimage.gaussian_filter(parts, (0, *[rng.uniform(0.5, 1.5)] * 2))))


def _standard(texture: np.ndarray) -> np.ndarray:
    return np.clip((texture - texture.mean()) / texture.std(), -3, 3)
