"""The training loss of several processes as that of one with all their slices.

The Dice loss of `samora_monai.losses` sums over a whole batch. Taken for each process alone it would be that of a small
batch: with two slices in place of four more classes are absent, each of which costs up to 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from samora_monai.engine.distributed import sum_of_all
from samora_monai.losses import SegmentationLoss, build_loss

SMOOTH = 1e-5


class SharedDice(DiceLoss):
    """`mean_k 1 - (2 sum p_k t_k + 1e-5) / (sum p_k^2 + sum t_k^2 + 1e-5)`, the sums over all processes' batches."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Logits [B, K, H, W] and label [B, 1, H, W], class numbers 0 ... K-1 -> a scalar, equal in all processes."""
        probability = logits.softmax(1)
        target = F.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)  # [B, K, H, W]
        common = (probability * target).sum((0, 2, 3))
        sizes = (probability**2).sum((0, 2, 3)) + target.sum((0, 2, 3))
        common, sizes = sum_of_all(torch.stack([common, sizes]))
        return (1 - (2 * common + SMOOTH) / (sizes + SMOOTH)).mean()


def build_shared_loss(**settings: Any) -> SegmentationLoss:
    """`samora_monai.losses.build_loss` with the Dice of all processes; their mean of its gradient is that of one."""
    loss = build_loss(**settings)
    loss.dice_ce.dice = SharedDice()
    return loss
