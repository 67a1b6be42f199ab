"""How uncertain a prompt-free network is about a scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samora_monai.data.slice_reader import neighbours
from samora_monai.networks import Segmenter

LEAST = 0.01  # part of the voxels; the divisor where the network finds less


@torch.no_grad()
def entropy(volume: Tensor, net: Segmenter, slices: int = 16, batch: int = 4, context: int = 0) -> float:
    """Entropy of the classes, summed over some slices, per voxel that the network expects to be foreground.

    The divisor makes scans of different field of view comparable: without it, a scan with much background is certain.

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
        log_p = logits.float().log_softmax(1)
        p = log_p.exp()
        total += float(-(p * log_p).sum()) / math.log(net.num_classes)
        foreground += float(1 - p[:, 0].mean()) * p[:, 0].numel()
        voxels += p[:, 0].numel()
    return total / max(foreground, LEAST * voxels)
