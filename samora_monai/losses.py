"""The segmentation losses of SAMed (https://arxiv.org/abs/2304.13785) and H-SAM (https://arxiv.org/abs/2403.18271).

Differs from their code in: the label is brought to the logits' grid with cell centres aligned (`nearest-exact`), as the
logits are later enlarged with `align_corners=False`; SciPy's `zoom` of the reference aligns the corners instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.losses import DiceCELoss
from monai.utils import convert_to_tensor


class SegmentationLoss(nn.Module):
    """SAMed's loss `lambda_ce * CE + lambda_dice * Dice`, background included in both.

    With p the softmax over K classes and t the one-hot label, sums over pixels and the whole batch:
    `Dice = mean_k 1 - (2 sum p_k t_k + 1e-5) / (sum p_k^2 + sum t_k^2 + 1e-5)`; CE is the mean over all pixels.
    A class that is absent from the batch costs up to 1 in its Dice term wherever it is predicted, as in the reference.

    Args:
        lambda_ce: weight of the cross-entropy; 0.2 in SAMed, 0.1 in H-SAM.
        lambda_dice: weight of the Dice loss; 0.8 in SAMed, 0.9 in H-SAM.
        upsample_logits: False takes the label down to the logits (nearest; SAMed), True takes the logits up to the
            label (bilinear), which costs memory and sees thin structures.
    """

    def __init__(self, lambda_ce: float = 0.2, lambda_dice: float = 0.8, upsample_logits: bool = False) -> None:
        super().__init__()
        self.upsample_logits = upsample_logits
        self.dice_ce = DiceCELoss(
            to_onehot_y=True, softmax=True, squared_pred=True, batch=True, lambda_ce=lambda_ce, lambda_dice=lambda_dice
        )

    def attach(self, engine: Engine) -> None:
        """Nothing to follow: the loss of one decoder is the same in every epoch of `engine`, the trainer."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits: [B, K, h, w], unnormalised, any floating type; computed in float32 or better.
            label: [B, 1, H, W], class numbers 0 ... K-1.

        Returns:
            a scalar.
        """
        logits = convert_to_tensor(logits, track_meta=False)
        label = convert_to_tensor(label, track_meta=False)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # the sums over a batch overflow half precision
        if logits.shape[2:] != label.shape[2:]:
            if self.upsample_logits:
                logits = F.interpolate(logits, label.shape[2:], mode="bilinear", align_corners=False)
            else:
                label = F.interpolate(label.float(), logits.shape[2:], mode="nearest-exact")
        return self.dice_ce(logits, label)


def second_stage_weight(epoch: int) -> float:
    """H-SAM's weight of its second decoder, `w = 0.6 ** (0.99 ** epoch)`: 0.6 at epoch 0 (0-based), towards 1."""
    return 0.6 ** (0.99**epoch)


class HierarchicalLoss(SegmentationLoss):
    """H-SAM's loss `(1 - w) L(logits_1) + w L(logits_2)`, with w = :func:`second_stage_weight` of the epoch.

    Attach it to the trainer, so that it follows the epoch, also after a resume.

    Args:
        lambda_ce: weight of the cross-entropy.
        lambda_dice: weight of the Dice loss.
        upsample_logits: as in :class:`SegmentationLoss`.
    """

    def __init__(self, lambda_ce: float = 0.1, lambda_dice: float = 0.9, upsample_logits: bool = False) -> None:
        super().__init__(lambda_ce, lambda_dice, upsample_logits)
        self.epoch = 0

    def attach(self, engine: Engine) -> None:
        """Follow the epoch of `engine`, the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._follow)

    def _follow(self, engine: Engine) -> None:
        self.epoch = engine.state.epoch - 1  # ignite counts from 1

    def forward(self, logits: Sequence[torch.Tensor], label: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Args:
            logits: the two decoders' logits, [B, K, h, w] and [B, K, h', w'].
            label: [B, 1, H, W], class numbers 0 ... K-1.

        Returns:
            a scalar.
        """
        first, second = logits
        w = second_stage_weight(self.epoch)
        return (1 - w) * super().forward(first, label) + w * super().forward(second, label)


def build_loss(decoder: str, upsample_logits: bool = False) -> SegmentationLoss:
    """The published loss of a network with this decoder: SAMed's for ``"sam"``, H-SAM's for ``"hierarchical"``."""
    return (HierarchicalLoss if decoder == "hierarchical" else SegmentationLoss)(upsample_logits=upsample_logits)
