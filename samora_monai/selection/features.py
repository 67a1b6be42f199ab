"""Local features of scans from the encoder of a segmentation network, and their embedding.

A scan is divided into a coarse grid of cells, and the encoder's features are averaged over the tissue in each cell. Two
scans are compared cell by cell, because a mean over the whole scan hides differences in small regions; the measurements
of COLosSAL (https://arxiv.org/abs/2307.12004) favour local features as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor

from samora_monai.data.slices import CONTENT_ABOVE
from samora_monai.networks import Segmenter
from samora_monai.networks.framing import resize_image
from samora_monai.pictures.expert import content_slices, extent_of, upright

GRID = (4, 4, 4)  # cells along the slices, and along both axes of a slice
SLICES = 16  # of a scan, evenly spaced, so that the time of a scan does not grow with its slices
SLICES_PER_PASS = 8
MIN_TISSUE = 0.05  # smallest part of a cell above `CONTENT_ABOVE`
VARIANCE = 0.9  # part of the variance that the embedding keeps


@dataclass(frozen=True)
class ScanFeatures:
    """What is kept of a scan after its one reading.

    Args:
        cells: mean features of the cells, `[64, dim]`, NaN in cells without tissue.
        picture: upright slice in the middle of those with content, `[H, W]` in [0, 1].
        extent: width and height of the picture in mm.
    """

    cells: np.ndarray
    picture: np.ndarray
    extent: tuple[float, float]


@torch.no_grad()
def scan_features(volume: MetaTensor, net: Segmenter) -> ScanFeatures:
    """Compute the features of a scan by a network on any device, in evaluation mode.

    Args:
        volume: `[1, X, Y, Z]` in [0, 1], slices along Z, as of `LoadUnlabeledd` and `ScaleUnlabeledd`.
        net: the network; only its encoder is used.
    """
    plain = volume.as_tensor()
    slices = content_slices(plain)
    picture = upright(plain[0, ..., slices[len(slices) // 2]]).copy()
    return ScanFeatures(_cells(plain, net), picture, extent_of(volume))


def _cells(volume: Tensor, net: Segmenter) -> np.ndarray:
    """`[1, X, Y, Z]` -> `[64, dim]`."""
    count = volume.shape[-1]
    picked = ((torch.arange(min(SLICES, count)) + 0.5) * count / min(SLICES, count)).long()
    slices = volume[..., picked].movedim(-1, 0).to(net.pixel_mean)  # [K, 1, X, Y]
    slices = resize_image(slices, (net.image_size, net.image_size))
    features = torch.cat([_encoded(chunk, net) for chunk in slices.split(SLICES_PER_PASS)])  # [K, dim, h, w]
    tissue = (slices > CONTENT_ABOVE).to(features)
    tissue = F.adaptive_avg_pool2d(tissue, (features.shape[-2], features.shape[-1]))
    weighted = torch.cat([features * tissue, tissue], 1).movedim(0, 1)  # [dim + 1, K, h, w]
    sums = F.adaptive_avg_pool3d(weighted, GRID).flatten(1)  # [dim + 1, cells]
    means = sums[:-1] / sums[-1].clamp_min(MIN_TISSUE)
    return torch.where(sums[-1] >= MIN_TISSUE, means, torch.nan).T.float().cpu().numpy()


def _encoded(slices: Tensor, net: Segmenter) -> Tensor:
    """`[B, 1, S, S]` in [0, 1] -> `[B, dim, S/16, S/16]`."""
    colours = slices.expand(-1, net.in_channels, -1, -1)
    return net.image_encoder.distilled(net.preprocess(colours))


def embed(cells: Sequence[np.ndarray]) -> np.ndarray:
    """Embed scans as directions from their mean: scans that differ from it in the same way are near each other.

    Each channel is scaled to unit variance, each cell is centred over the scans, cells without tissue are set to the
    mean, and the leading principal components with `VARIANCE` of the variance are kept. Their length is divided out, as
    k-means would otherwise spend its centres on the few scans that are farthest from all others.

    Args:
        cells: features of each scan, `[cells, dim]`, NaN where a cell is empty.

    Returns:
        unit vectors `[scans, components]`, float64; zeros for a scan that equals the mean.
    """
    x = np.stack(cells).astype(np.float64)  # [N, cells, dim]
    seen = ~np.isnan(x[..., 0])
    counts = np.maximum(seen.sum(0), 1)[:, None]
    x = np.where(seen[..., None], x - np.where(seen[..., None], x, 0).sum(0) / counts, 0)
    x /= np.sqrt((x**2).sum((0, 1)) / max(seen.sum(), 1)).clip(np.finfo(np.float32).eps)
    u, s, _ = np.linalg.svd(x.reshape(len(x), -1) / np.sqrt(x[0].size), full_matrices=False)
    kept = int((np.cumsum(s**2) < VARIANCE * (s**2).sum()).sum()) + 1
    embedded = u[:, :kept] * s[:kept]
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True).clip(np.finfo(np.float32).eps)
