"""Distillation: the pretext task of the image and patch experts (SAMora, ICCV 2025).

    L = 1/n sum_i || F(x_i) - G(x_i) ||^2 / D        (F the frozen teacher, G the student, D the width of the target)

The student is the frozen encoder of SAM or SAM 2 with one expert and one linear head, as in EfficientSAM
(https://arxiv.org/abs/2312.00863); only the expert and the head are trained, and the head is discarded.

Differs from the published formula in:
- targets are normalised by a LayerNorm without parameters (optional), because the channels of a teacher differ in scale
  by orders of magnitude; the loss of a prediction of zero is then 1 at both levels;
- the student's features are normalised in the same way before the head, because no norm follows SAM's last block, whose
  outputs are large.
Differs from the research release in:
- the student's features on SAM are those of the last block, where the experts act, not those of the neck; on SAM 2,
  whose last block has tokens of 32 pixels, they are the embedding of the neck;
- tokens of student and teacher are compared at the same position, and the teacher has no random projection.
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
from samora_monai.networks.framing import resize_image
from samora_monai.settings import flag


class EncoderFeatures(nn.Module):
    """The features of the encoder that a teacher's are compared with, see `Encoder.distilled`, or their mean.

    Args:
        segmenter: the network that holds the encoder; its decoder is not used.
        pooled: return the mean over all positions.
        grid: resize the features to `grid` x `grid` positions.
    """

    def __init__(self, segmenter: Segmenter, pooled: bool = False, grid: int | None = None) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.pooled = pooled
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` in [0, 1] -> `[B, dim]` if pooled, else `[B, dim, g, g]`."""
        features = self.segmenter.image_encoder.distilled(self.segmenter.preprocess(x))
        if self.pooled:
            return features.mean((2, 3))
        return features if self.grid is None else resize_image(features, (self.grid, self.grid))


class DistillationStudent(nn.Module):
    """G(x): the frozen encoder with one expert, and one linear head to the teacher's width.

    Args:
        segmenter: a network of `build_segmenter` with one expert and `train="experts"`.
        out_dim: width D of the teacher's features.
        pooled: predict one feature vector per slice (image level) instead of one per token (patch level).
        grid: side of the teacher's token grid (patch level).
    """

    def __init__(self, segmenter: Segmenter, out_dim: int, pooled: bool = False, grid: int | None = None) -> None:
        super().__init__()
        self.features = EncoderFeatures(segmenter, pooled, grid)
        self.head = nn.Linear(segmenter.image_encoder.distilled_width, out_dim)

    def describe(self) -> str:
        """Describe the network in one line."""
        what = "pooled features" if self.features.pooled else "tokens"
        return f"{self.features.segmenter.describe_encoder()}; {what} -> linear head, {self.head.out_features} wide"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` in [0, 1] -> `[B, D]` if pooled, else `[B, N, D]`, tokens row by row."""
        features = self.features(x)
        if not self.features.pooled:
            features = features.flatten(2).mT  # [B, N, dim]
        return self.head(F.layer_norm(features, features.shape[-1:]))


class TeacherTarget:
    """MONAI's `prepare_batch` for distillation: the image, and the features of the frozen teacher as its target.

    The teacher is not a submodule of the student, so neither its state dict nor the optimiser holds it. It runs in
    evaluation mode, without gradients, on the device of the batch.

    Args:
        teacher: F, from images `[B, 1, H, W]` in [0, 1] to features `[B, ..., D]`.
        normalize: apply a LayerNorm without parameters over D.
        amp: run the teacher under bfloat16 autocast.
    """

    def __init__(self, teacher: nn.Module, normalize: bool | str = True, amp: bool | str = False) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.normalize = flag(normalize, "normalize_target")
        self.amp = flag(amp, "amp")

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """`{"image": [B, 1, H, W]}` -> the image and its target `[B, ..., D]` in float32, both on `device`."""
        image = convert_to_tensor(batchdata[Keys.IMAGE], track_meta=False).to(device, non_blocking=non_blocking)
        with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            target = self.teacher.to(image.device)(image).float()
        return image, F.layer_norm(target, target.shape[-1:]) if self.normalize else target
