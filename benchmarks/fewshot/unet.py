"""The baseline outside SAM: MONAI's 2-D U-Net with residual units, from random weights."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from samora_monai.networks.framing import resize_image


class StretchedUNet(nn.Module):
    """The U-Net on slices resized to one square size; its logits are resized to the slice.

    Args:
        num_classes: number of classes with background.
        image_size: side S of the U-Net's input in pixels, a multiple of 16.
    """

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        channels = (16, 32, 64, 128, 256)
        self.unet = UNet(2, 1, num_classes, channels, strides=(2, 2, 2, 2), num_res_units=2, norm="batch")

    def describe(self) -> str:
        """The network in one line of the summary."""
        return f"MONAI's 2-D U-Net, input {self.image_size}"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 1, H, W]` in [0, 1] -> logits `[B, num_classes, H, W]`."""
        stretched = resize_image(x, (self.image_size, self.image_size))
        mean, std = stretched.mean((2, 3), keepdim=True), stretched.std((2, 3), keepdim=True)
        logits = self.unet((stretched - mean) / (std + 1e-3))  # z-scores of the slice
        return F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
