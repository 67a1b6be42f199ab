"""The segmentation losses of SAMed (https://arxiv.org/abs/2304.13785) and H-SAM (https://arxiv.org/abs/2403.18271).

Differs from their code in: the label is resized to the grid of the logits with aligned cell centres (`nearest-exact`),
which fits the enlargement of the logits with `align_corners=False`; SciPy's `zoom` in the reference aligns the corners.
"""

from __future__ import annotations

from collections.abc import Sequence

import ignite.distributed as idist
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from monai.utils import convert_to_tensor

from samora_monai.errors import InputError

_SMOOTH = 1e-5  # MONAI's default, in numerator and denominator of the Dice term


class SegmentationLoss(nn.Module):
    """SAMed's loss `lambda_ce * CE + lambda_dice * Dice`, background included in both.

    With p the softmax over K classes and t the one-hot label, sums over pixels and the whole batch:
    `Dice = mean_k 1 - (2 sum p_k t_k + 1e-5) / (sum p_k^2 + sum t_k^2 + 1e-5)`; CE is the mean over all pixels.
    As in the reference, a class that is absent from the batch adds up to 1 to the sum over k where it is predicted.
    Weights of pixels multiply each summand of the sums over pixels, and the cross-entropy before its mean.

    Args:
        lambda_ce: weight of the cross-entropy; 0.2 in SAMed, 0.1 in H-SAM.
        lambda_dice: weight of the Dice loss; 0.8 in SAMed, 0.9 in H-SAM.
        upsample_logits: False reduces the label to the size of the logits (nearest; SAMed). True enlarges the logits to
            the size of the label (bilinear), which needs more memory and resolves thin structures.
        all_processes: compute the Dice term over the batches of all processes of a distributed run, see `SharedDice`.
    """

    def __init__(
        self,
        lambda_ce: float = 0.2,
        lambda_dice: float = 0.8,
        upsample_logits: bool = False,
        all_processes: bool = False,
    ) -> None:
        super().__init__()
        self.upsample_logits = upsample_logits
        self.dice_ce = DiceCELoss(
            to_onehot_y=True, softmax=True, squared_pred=True, batch=True, lambda_ce=lambda_ce, lambda_dice=lambda_dice
        )
        self.weighted_dice = SharedDice() if all_processes else WeightedDice()
        if all_processes:
            self.dice_ce.dice = self.weighted_dice

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar of at least float32.

        Args:
            logits: [B, K, h, w], unnormalised, any floating type.
            label: [B, 1, H, W], class numbers 0 ... K-1; or [B, 2, H, W], also the weight of each pixel, from 0 to 1.
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
        label, weight = label[:, :1], label[:, 1:]
        if weight.shape[1] == 0:
            return self.dice_ce(logits, label)
        ce = F.cross_entropy(logits, label[:, 0].long(), reduction="none")  # [B, h, w]
        dice = self.weighted_dice(logits, label, weight)
        return self.dice_ce.lambda_dice * dice + self.dice_ce.lambda_ce * (weight[:, 0] * ce).mean()


def second_stage_weight(epoch: int) -> float:
    """H-SAM's weight of its second decoder, `w = 0.6 ** (0.99 ** epoch)`: 0.6 in epoch 0, rising towards 1."""
    return 0.6 ** (0.99**epoch)


class HierarchicalLoss(SegmentationLoss):
    """H-SAM's loss `(1 - w) L(logits_1) + w L(logits_2)`, with w = `second_stage_weight` of the epoch.

    Args:
        upsample_logits, all_processes: as in `SegmentationLoss`.
    """

    def __init__(self, upsample_logits: bool = False, all_processes: bool = False) -> None:
        super().__init__(0.1, 0.9, upsample_logits, all_processes)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Use the weight of `epoch`, counted from 0. In a bundle `TrainingHandlers` calls this."""
        self.epoch = epoch

    def forward(self, logits: Sequence[torch.Tensor], label: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return the loss of the two decoders' logits, [B, K, h, w] and [B, K, h', w']."""
        first, second = logits
        w = second_stage_weight(self.epoch)
        return (1 - w) * super().forward(first, label) + w * super().forward(second, label)


class WeightedDice(DiceLoss):
    """The Dice term of `SegmentationLoss`, with a weight for each pixel."""

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss, a scalar, of logits, label and weights `[B, 1, H, W]` on one grid; no weights: all 1."""
        probability = logits.softmax(1)
        target = F.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)  # [B, K, H, W]
        counted = target if weight is None else target * weight
        common = (probability * counted).sum((0, 2, 3))
        squares = probability**2 if weight is None else probability**2 * weight
        common, sizes = self.total(torch.stack([common, squares.sum((0, 2, 3)) + counted.sum((0, 2, 3))]))
        return (1 - (2 * common + _SMOOTH) / (sizes + _SMOOTH)).mean()

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over all slices that the loss is of, from those over the batch."""
        return sums


class SharedDice(WeightedDice):
    """The Dice term of `SegmentationLoss`, with sums over the batches of all processes.

    Computed for each process alone, it would be the Dice loss of a smaller batch, from which more classes are absent.
    The loss is equal in all processes.
    """

    def total(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over the batches of all processes."""
        return _sum_over_processes(sums)


def _sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    # scale the gradient of x by the number of processes, because DistributedDataParallel averages gradients
    total = idist.all_reduce(x.detach().clone())
    assert isinstance(total, torch.Tensor)
    return total + idist.get_world_size() * (x - x.detach())


LOSSES = {"sam": SegmentationLoss, "hierarchical": HierarchicalLoss}


def build_loss(decoder: str, upsample_logits: bool = False, all_processes: bool = False) -> SegmentationLoss:
    """Build the published loss of a decoder: SAMed's for `"sam"`, H-SAM's for `"hierarchical"`.

    With `all_processes`, the gradient averaged over processes equals that of a single process with all slices.

    Raises:
        InputError: unknown decoder.
    """
    if decoder not in LOSSES:
        raise InputError(f"no loss for decoder {decoder!r}; choose one of {', '.join(LOSSES)}")
    return LOSSES[decoder](upsample_logits=upsample_logits, all_processes=all_processes)
