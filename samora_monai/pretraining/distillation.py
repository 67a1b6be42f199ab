"""Distillation: the image and patch experts learn to let SAM's encoder say what a teacher says (SAMora, ICCV 2025).

    L = 1/n sum_i || F(x_i) - G(x_i) ||^2 / D        (F the frozen teacher, G the student, D the width of the target)

The student is SAM's frozen encoder with one expert and one linear head, as in EfficientSAM
(https://arxiv.org/abs/2312.00863); only the expert and the head train, and the head is thrown away.

Differs from the published formula in:
- targets go through a LayerNorm without parameters (a switch), because a teacher's channels differ in scale by orders
  of magnitude; predicting zero then costs 1 at every level;
- so do the features in front of the head: SAM's last block is followed by no norm, and its residual stream is large.
Differs from the research release in:
- students are tapped after the last block, where the experts act, not behind the neck;
- tokens of student and teacher are compared in the same place, and no random projection stands in front of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import CommonKeys as Keys
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.networks import Segmenter


class EncoderFeatures(nn.Module):
    """What the last block of SAM's encoder says about an image.

    Args:
        segmenter: the network that holds the encoder; its decoder is not used.
        pooled: the mean over all tokens instead of the tokens.
        grid: tokens are resized to `grid` x `grid` places (antialiased), if given.
    """

    def __init__(self, segmenter: Segmenter, pooled: bool = False, grid: int | None = None) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.pooled = pooled
        self.grid = grid
        self.out_dim = segmenter.image_encoder.embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` in [0, 1] -> ``[B, dim]`` pooled, else ``[B, dim, g, g]``."""
        (tokens,) = self.segmenter.image_encoder.tokens(self.segmenter.preprocess(x))  # [B, h, w, dim]
        if self.pooled:
            return tokens.mean((1, 2))
        tokens = tokens.permute(0, 3, 1, 2)
        if self.grid is None or tokens.shape[-2:] == (self.grid, self.grid):
            return tokens
        return F.interpolate(tokens, (self.grid, self.grid), mode="bilinear", align_corners=False, antialias=True)


class DistillationStudent(nn.Module):
    """G(x): SAM's encoder with one expert, and one linear head to the teacher's width.

    Args:
        segmenter: a network of `build_segmenter` with one expert and ``train="experts"``.
        out_dim: width D of the teacher's features.
        pooled: image level, one feature for a slice; else patch level, one for each token.
        grid: side of the teacher's token grid, for the patch level.
    """

    def __init__(self, segmenter: Segmenter, out_dim: int, pooled: bool = False, grid: int | None = None) -> None:
        super().__init__()
        self.features = EncoderFeatures(segmenter, pooled, grid)
        self.head = nn.Linear(self.features.out_dim, out_dim)

    def describe(self) -> str:
        """One line for people: what is built."""
        what = "pooled features" if self.features.pooled else "tokens"
        return f"{self.features.segmenter.describe_encoder()}; {what} -> linear head, {self.head.out_features} wide"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` in [0, 1] -> ``[B, D]`` pooled, else ``[B, N, D]``, tokens row by row."""
        features = self.features(x)
        if not self.features.pooled:
            features = features.flatten(2).mT  # [B, N, dim]
        return self.head(F.layer_norm(features, features.shape[-1:]))


class TeacherTarget:
    """MONAI's `prepare_batch` for distillation: an image, and what the frozen teacher says about it.

    The teacher belongs to no network: it is in no state dict and no optimiser, runs in evaluation mode without
    gradients, and follows the batch to its device.

    Args:
        teacher: F, from images ``[B, 1, H, W]`` in [0, 1] to features ``[B, ..., D]``.
        normalize: LayerNorm without parameters over D.
        amp: run the teacher under bfloat16 autocast.
    """

    def __init__(self, teacher: nn.Module, normalize: bool = True, amp: bool = False) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.normalize = normalize
        self.amp = amp

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """``{"image": [B, 1, H, W]}`` -> the image and its target ``[B, ..., D]`` in float32, both on `device`."""
        image = convert_to_tensor(batchdata[Keys.IMAGE], track_meta=False).to(device, non_blocking=non_blocking)
        with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            target = self.teacher.to(image.device)(image)
        target = target.float()
        return image, F.layer_norm(target, target.shape[-1:]) if self.normalize else target
