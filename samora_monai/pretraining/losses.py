"""The losses of the teachers' own pretraining: SimCLR's contrastive loss and MAE's reconstruction loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.errors import InputError
from samora_monai.networks.framing import resize_image
from samora_monai.pretraining.mae import normalise, patchify
from samora_monai.settings import flag


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.1) -> Tensor:
    """The normalised, temperature-scaled cross-entropy of SimCLR (https://arxiv.org/abs/2002.05709), in float32.

    With s the cosine of two projections and (i, j) the two views of an image, over all 2 B projections:
    `mean_i -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) )`. SimCLR's code adds its two directions instead, which
    is twice this mean. A single image has no negatives and a loss of 0.

    Differs from `monai.losses.ContrastiveLoss` in: float32 under any autocast, log space, and memory of
    [2 B, 2 B], not [2 B, 2 B, D]. Differs from SimCLR in: under DistributedDataParallel the negatives of a process are
    those of its own batch, not those of all processes.

    Args:
        z1, z2: `[B, D]`, projections of the first and the second views, of any length.
        temperature: t; 0.1 in SimCLRv2.
    """
    with torch.autocast(z1.device.type, enabled=False):  # in bfloat16, cosines over 0.1 have an error of 2 %
        z = F.normalize(torch.cat([z1, z2]).float(), dim=1)
        logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # [2 B, 2 B]
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z1)))


class NTXentLoss(nn.Module):
    """`nt_xent` as the loss function of a trainer.

    Raises:
        InputError: the temperature is not positive.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"temperature is {temperature}; expected a positive number, e.g. 0.1 as in SimCLRv2")
        self.temperature = temperature

    def forward(self, z: Tensor, target: object = None) -> Tensor:
        """`[B, 2, D]`, projections of both views of each image -> scalar; each view is the target of the other."""
        return nt_xent(z[:, 0], z[:, 1], self.temperature)


class MaskedReconstructionLoss(nn.Module):
    """MAE's loss (https://arxiv.org/abs/2111.06377): the mean squared error of the masked patches.

    Args:
        norm_pix: standardise each patch of the target to mean 0 and unbiased variance 1, as for the public `pretrain`
            files. False: normalise pixels by ImageNet's statistics.
    """

    def __init__(self, norm_pix: bool | str = True) -> None:
        super().__init__()
        self.norm_pix = flag(norm_pix, "norm_pix")

    def forward(self, pred: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Output of `MAETeacher.masked` and its input `[B, 1 or 3, H, W]` -> scalar, computed in float32."""
        prediction, mask = pred  # [B, N, P P 3] and [B, N]
        patch_size = math.isqrt(prediction.shape[2] // 3)
        side = math.isqrt(prediction.shape[1]) * patch_size
        image = resize_image(convert_to_tensor(target, track_meta=False).float(), (side, side))
        patches = patchify(normalise(image), patch_size)
        if self.norm_pix:
            mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            patches = (patches - mean) / (var + 1e-6).sqrt()
        error = (prediction.float() - patches).square().mean(-1)  # [B, N]
        return (error * mask).sum() / mask.sum()
