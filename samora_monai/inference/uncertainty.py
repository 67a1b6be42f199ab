"""How uncertain a prompt-free network is: about what it has found in a scan, and about a scan that has no label yet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samora_monai.data.slice_reader import neighbours
from samora_monai.networks import Segmenter

ENTROPY = "entropy"  # key of a case's `FoundEntropy` in the metadata of its prediction
LEAST = 0.01  # part of the voxels; the divisor where the network finds less


def entropies(probabilities: Tensor) -> Tensor:
    """Entropies of class probabilities `[N, K, ...]` -> `[N, ...]`, so that 1, the logarithm of K, is the highest."""
    return torch.special.entr(probabilities).sum(1) / math.log(probabilities.shape[1])


class FoundEntropy:
    """Mean entropy of the classes over the voxels of a case that are predicted to be foreground.

    Averages over all voxels or over the expected foreground order cases less well by their Dice: benchmarks/README.md.
    """

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, scores: Tensor, labels: Tensor, logits: bool) -> None:
        """Add some slices of the case.

        Args:
            scores: `[b, K, X, Y]`: logits, or probabilities times any factor of each slice.
            labels: `[b, 1, X, Y]`, the highest of the scores.
            logits: which of both the scores are.
        """
        found = scores.movedim(1, -1)[labels[:, 0] > 0].float()  # [n, K]
        probabilities = found.softmax(1) if logits else found / found.sum(1, keepdim=True)
        self.total = self.total + entropies(probabilities).sum()
        self.count += len(found)

    def mean(self) -> float:
        """The mean, from 0 to 1; NaN where nothing is predicted."""
        return float(self.total) / self.count if self.count else math.nan


@torch.no_grad()
def entropy(volume: Tensor, net: Segmenter, slices: int = 16, batch: int = 4, context: int = 0) -> float:
    """Entropy of the classes, summed over some slices, per voxel that the network expects to be foreground.

    The divisor makes scans of different field of view comparable: without it, a scan with much background is certain.
    Unlike `FoundEntropy`, it ranks a scan in which nothing is found.

    Args:
        volume: `[1, X, Y, Z]` in [0, 1], slices along Z.
        net: in evaluation mode, on any device.
        slices: number of slices, evenly spaced.
        batch: slices of one forward pass.
        context: number of neighbouring slices on each side that are further channels of a slice.

    Returns:
        the entropy in units of the logarithm of the number of classes, so that 1 is the highest of a voxel.
    """
    count = volume.shape[-1]
    picked = ((torch.arange(min(slices, count)) + 0.5) * count / min(slices, count)).long()
    channels = torch.from_numpy(neighbours(count, context))[picked]  # [K, 2 * context + 1]
    stack = volume[0].movedim(-1, 0)[channels].to(net.pixel_mean)  # [K, 2 * context + 1, X, Y]
    total, foreground, voxels = 0.0, 0.0, 0
    for chunk in stack.expand(-1, net.in_channels, -1, -1).split(batch):
        logits = net(chunk)
        assert isinstance(logits, Tensor)
        p = logits.float().softmax(1)
        total += float(entropies(p).sum())
        foreground += float(1 - p[:, 0].mean()) * p[:, 0].numel()
        voxels += p[:, 0].numel()
    return total / max(foreground, LEAST * voxels)
