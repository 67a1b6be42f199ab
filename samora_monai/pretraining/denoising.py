"""Denoising: the pretext task of the pixel expert (SAMora, ICCV 2025). A U-Net decoder removes noise from SAM's tokens.

    L = 1/n sum_i || D(G(x_i + sigma eps)) - x_i ||^2        (x in [0, 1], G the encoder with its expert, D the decoder)

The decoder is UNETR's (https://arxiv.org/abs/2103.10504, MONAI's blocks) in two dimensions.
Differs from UNETR, and from a U-Net, in: no skip connection from the image to the output. With one, the decoder could
denoise alone, and the expert would learn nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks.blocks import UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from samora_monai.errors import InputError
from samora_monai.networks import Segmenter


class UNETRDecoder(nn.Module):
    """Decode four token grids of an encoder to an image sixteen times as large.

    Args:
        dim: width of the tokens.
        feature_size: channels of the last layer, doubled at each coarser level; 32 gives 5.4 M parameters on vit_b.
    """

    def __init__(self, dim: int, feature_size: int = 32) -> None:
        super().__init__()
        n = feature_size
        kind: dict[str, Any] = {"kernel_size": 3, "upsample_kernel_size": 2, "norm_name": "instance", "res_block": True}

        def skip(channels: int, doublings: int) -> nn.Module:
            return UnetrPrUpBlock(2, dim, channels, num_layer=doublings - 1, stride=1, conv_block=True, **kind)

        def up(in_channels: int, channels: int) -> nn.Module:
            return UnetrUpBlock(2, in_channels, channels, **kind)

        self.skips = nn.ModuleList([skip(8 * n, 1), skip(4 * n, 2), skip(2 * n, 3)])  # to 1/8, 1/4 and 1/2 of the image
        self.ups = nn.ModuleList([up(dim, 8 * n), up(8 * n, 4 * n), up(4 * n, 2 * n)])
        self.last = nn.Sequential(nn.ConvTranspose2d(2 * n, n, 2, stride=2), nn.GELU(), nn.Conv2d(n, 1, 1))

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """`[B, h, w, dim]` of four depths, the deepest last -> `[B, 1, 16 h, 16 w]`."""
        *shallow, x = (t.permute(0, 3, 1, 2) for t in tokens)
        for up, skip, t in zip(self.ups, self.skips, reversed(shallow), strict=True):
            x = up(x, skip(t))
        return self.last(x)


class DenoisingStudent(nn.Module):
    """D(G(x)): SAM's encoder with one expert, and the decoder on the tokens after each quarter of its blocks.

    In SAM's presets, these are the outputs of the blocks with global attention.

    Args:
        segmenter: a network of `build_segmenter` with one expert and `train="experts"`.
        feature_size: channels of the decoder's last layer, see `UNETRDecoder`.
    """

    def __init__(self, segmenter: Segmenter, feature_size: int = 32) -> None:
        super().__init__()
        encoder = segmenter.image_encoder
        self.segmenter = segmenter
        self.taps = tuple(len(encoder.blocks) * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        self.decoder = UNETRDecoder(encoder.embed_dim, feature_size)

    def describe(self) -> str:
        """Describe the network in one line."""
        return f"{self.segmenter.describe_encoder()}; U-Net decoder on blocks {', '.join(map(str, self.taps))}"

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images `[B, in_channels, H, W]`, [0, 1] before the noise -> denoised `[B, 1, H, W]`, not clipped."""
        clean = self.decoder(self.segmenter.encode(x, self.taps))
        if clean.shape[-2:] == x.shape[-2:]:
            return clean
        return F.interpolate(clean, x.shape[-2:], mode="bilinear", align_corners=False)


class DenoisingLoss(nn.Module):
    """`(1 - w) MSE + w (1 - Dice)` on images in [0, 1].

    The Dice of each image, `2 sum(p t) / (sum(p^2) + sum(t^2))`, has its maximum at p = t. Differs from the research
    release in: its Dice has plain sums in the denominator, on standardised images, and with w = 0.9 a prediction of the
    brightest 1 % alone scores better than the clean image.

    Args:
        dice_weight: w, 0 to 1; 0 is the mean squared error alone.

    Raises:
        InputError: w is not in [0, 1].
    """

    def __init__(self, dice_weight: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dice_weight <= 1:
            raise InputError(f"dice_weight must be from 0 to 1, got {dice_weight}")
        self.dice_weight = dice_weight
        self.dice = DiceLoss(squared_pred=True)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """pred, target: `[B, 1, H, W]` -> scalar."""
        pred, target = pred.float(), target.float()
        mse = F.mse_loss(pred, target)
        if not self.dice_weight:
            return mse
        return torch.lerp(mse, self.dice(pred.clamp(0, 1), target), self.dice_weight)
