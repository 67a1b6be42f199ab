"""Denoising, the pretext task of the pixel expert (SAMora, ICCV 2025): a U-Net decodes tokens to a clean image.

    L = 1/n sum_i || D(G(x_i + sigma eps)) - x_i ||^2        (x in [0, 1], G the encoder with its expert, D the decoder)

The decoder is UNETR's (https://arxiv.org/abs/2103.10504, MONAI's blocks) in two dimensions.
Differs from UNETR, and from a U-Net, in: no skip connection from the image to the output. With one, the decoder could
denoise alone, and the expert would learn nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from samora_monai.errors import InputError
from samora_monai.networks import Segmenter


class UNETRDecoder(nn.Module):
    """Decode four token grids of an encoder to an image.

    Each step doubles the resolution of the deepest grid and adds the next shallower one, which is upsampled to the same
    resolution (a ViT) or has it already (Hiera).

    Args:
        widths, strides: width of the tokens and side of a token in pixels, for each grid, the deepest last.
        feature_size: channels of the last layer, doubled at each coarser level; 32 gives 5.4 M parameters on vit_b.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], feature_size: int = 32) -> None:
        super().__init__()
        n = feature_size
        kind: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.skips, self.ups = nn.ModuleList(), nn.ModuleList()
        stride, in_channels = strides[-1], widths[-1]
        for width, own_stride, channels in zip(widths[-2::-1], strides[-2::-1], (8 * n, 4 * n, 2 * n), strict=True):
            stride //= 2
            self.skips.append(_skip(width, channels, own_stride // stride, kind))
            self.ups.append(UnetrUpBlock(2, in_channels, channels, upsample_kernel_size=2, **kind))
            in_channels = channels
        layers: list[nn.Module] = []
        while stride > 1:
            layers += [nn.ConvTranspose2d(in_channels, n, 2, stride=2), nn.GELU()]
            stride, in_channels = stride // 2, n
        self.last = nn.Sequential(*layers, nn.Conv2d(in_channels, 1, 1))

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """`[B, h, w, width]` of four depths, the deepest last -> `[B, 1, H, W]`."""
        *shallow, x = (t.permute(0, 3, 1, 2) for t in tokens)
        for up, skip, t in zip(self.ups, self.skips, reversed(shallow), strict=True):
            x = up(x, skip(t))
        return self.last(x)


def _skip(width: int, channels: int, scale: int, kind: dict[str, Any]) -> nn.Module:
    """`[B, width, h, w]` -> `[B, channels, scale h, scale w]`; `scale` is a power of two."""
    if scale == 1:
        return UnetrBasicBlock(2, width, channels, stride=1, **kind)
    doublings = scale.bit_length() - 1
    options: dict[str, Any] = {"num_layer": doublings - 1, "stride": 1, "upsample_kernel_size": 2, "conv_block": True}
    return UnetrPrUpBlock(2, width, channels, **options, **kind)


class DenoisingStudent(nn.Module):
    """D(G(x)): the frozen encoder with one expert, and the decoder on the tokens of four of its blocks.

    These are the last blocks of each quarter of SAM's ViT, which in its presets have global attention, and of each
    stage of SAM 2's Hiera.

    Args:
        segmenter: a network of `build_segmenter` with one expert and `train="experts"`.
        feature_size: channels of the decoder's last layer, see `UNETRDecoder`.
    """

    def __init__(self, segmenter: Segmenter, feature_size: int = 32) -> None:
        super().__init__()
        encoder = segmenter.image_encoder
        self.segmenter = segmenter
        self.taps = encoder.taps
        self.decoder = UNETRDecoder(encoder.tap_widths, encoder.tap_strides, feature_size)

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
