"""Map an image of any shape to the square input of a promptable network, and its masks back to the image."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from samora_monai.errors import InputError

Size = tuple[int, int]  # rows, columns


def resize_image(x: Tensor, size: Size) -> Tensor:
    """Resize `[B, C, H, W]` to `[B, C, *size]`, bilinear, antialiased when shrinking."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def resize_logits(x: Tensor, size: Size) -> Tensor:
    """Resize `[B, C, H, W]` to `[B, C, *size]`, bilinear."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class Framing(Protocol):
    """The square input of side S for an image of `shape`."""

    def frame(self, image: Tensor, side: int) -> Tensor:
        """Normalised pixels `[3, *shape]` -> `[3, S, S]`."""

    def scale(self, shape: Size, side: int) -> tuple[float, float]:
        """Factors of the x and y coordinates of prompts."""

    def unframe(self, logits: Tensor, shape: Size, side: int, size: Size) -> Tensor:
        """Logits of the square, `[n, T, S/4, S/4]` -> those of the image, `[n, T, *size]`."""

    def prompt_logits(self, logits: Tensor) -> Tensor:
        """Logits of the square -> those that a later prompt may contain."""


class Padded:
    """SAM's: the image is at the top left, zeros fill the rest."""

    def frame(self, image: Tensor, side: int) -> Tensor:
        height, width = image.shape[-2:]
        if max(height, width) > side:
            raise InputError(f"the image is {height} x {width}, larger than the network's {side}; resize it")
        return F.pad(image, (0, side - width, 0, side - height))

    def scale(self, shape: Size, side: int) -> tuple[float, float]:
        return 1.0, 1.0

    def unframe(self, logits: Tensor, shape: Size, side: int, size: Size) -> Tensor:
        return resize_logits(resize_logits(logits, (side, side))[..., : shape[0], : shape[1]], size)

    def prompt_logits(self, logits: Tensor) -> Tensor:
        return logits


class Stretched:
    """SAM 2's: the image is resized to the square, and its aspect ratio is not kept."""

    def frame(self, image: Tensor, side: int) -> Tensor:
        return resize_image(image[None], (side, side))[0]

    def scale(self, shape: Size, side: int) -> tuple[float, float]:
        return side / shape[1], side / shape[0]

    def unframe(self, logits: Tensor, shape: Size, side: int, size: Size) -> Tensor:
        return resize_logits(logits, size)

    def prompt_logits(self, logits: Tensor) -> Tensor:
        return logits.clamp(-32, 32)  # as SAM 2's image predictor, after it has resized the masks
