"""Distillation: the pretext task of the image and patch experts (SAMora, ICCV 2025).

    L = 1/n sum_i || F(x_i) - G(x_i) ||^2 / D        (F the frozen teacher, G the student, D the width of the target)

At the image level the teacher's features are one vector per slice, or also its map before the pooling (`dense`):

    L = 1/2 L(pooled vector) + 1/2 L(map)

The student is the frozen encoder of SAM or SAM 2 with one expert and one linear head, as in EfficientSAM
(https://arxiv.org/abs/2312.00863); only the expert and the head are trained, and the head is discarded.

Differs from the published formula in:
- targets are normalised by a LayerNorm without parameters (optional), because the channels of a teacher differ in scale
  by orders of magnitude; the loss of a prediction of zero is then 1 at both levels;
- the student's features are normalised in the same way before the head, because no norm follows SAM's last block, whose
  outputs are large;
- targets are standardised over the data set (optional, `target_statistics`), because a LayerNorm of each token leaves
  a mean vector, which the head's bias alone predicts.
Differs from the research release in:
- the student's features on SAM are those of the last block, where the experts act, not those of the neck; on SAM 2,
  whose last block has tokens of 32 pixels, they are the embedding of the neck;
- tokens of student and teacher are compared at the same position, and the teacher has no random projection.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from monai.utils import CommonKeys as Keys
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from samora_monai.networks import Segmenter
from samora_monai.networks.framing import resize_image
from samora_monai.pretraining.target_statistics import TargetStatistics
from samora_monai.settings import flag

logger = logging.getLogger(__name__)

BATCHES = 20  # that the statistics of the targets are measured on


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
        grid: side of the teacher's token grid (patch level, and `dense`).
        dense: with `pooled`: also predict the map before the pooling, with a head of its own.
        standardise: hold the `statistics` of the targets (else None), so that they are part of the run's last
            checkpoint.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        out_dim: int,
        pooled: bool = False,
        grid: int | None = None,
        dense: bool | str = False,
        standardise: bool | str = False,
    ) -> None:
        super().__init__()
        self.dense = flag(dense, "dense")
        assert pooled or not self.dense
        self.pooled, self.grid = pooled, grid or 0
        self.features = EncoderFeatures(segmenter, pooled and not self.dense, None if self.dense else grid)
        self.head = nn.Linear(segmenter.image_encoder.distilled_width, out_dim)
        self.map_head = nn.Linear(segmenter.image_encoder.distilled_width, out_dim) if self.dense else None
        standardise = flag(standardise, "standardise_targets")
        self.statistics = TargetStatistics(out_dim, 1 + self.dense) if standardise else None

    @property
    def segmenter(self) -> Segmenter:
        """The network with the expert."""
        return self.features.segmenter

    def describe(self) -> str:
        """Describe the network in one line."""
        what = "pooled features" if self.pooled else "tokens"
        what += f" and their map of {self.grid} x {self.grid}" if self.dense else ""
        return f"{self.segmenter.describe_encoder()}; {what} -> linear head, {self.head.out_features} wide"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` in [0, 1] -> `[B, D]` if pooled, `[B, 1 + N, D]` if dense, the pooled vector first,
        else `[B, N, D]`; tokens row by row."""
        features = self.features(x)
        if self.map_head is not None:
            tokens = resize_image(features, (self.grid, self.grid)).flatten(2).mT  # [B, N, dim]
            pooled = self.head(_normalised(features.mean((2, 3))))
            return torch.cat([pooled[:, None], self.map_head(_normalised(tokens))], 1)
        if not self.pooled:
            features = features.flatten(2).mT  # [B, N, dim]
        return self.head(_normalised(features))


def _normalised(features: Tensor) -> Tensor:
    return F.layer_norm(features, features.shape[-1:])


class DistillationLoss(nn.Module):
    """L: the mean squared error; with `dense` half of it is that of the pooled vector, which comes first."""

    def __init__(self, dense: bool | str = False) -> None:
        super().__init__()
        self.dense = flag(dense, "dense")

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """pred, target: `[B, ..., D]`, with `dense` `[B, 1 + N, D]` -> scalar."""
        if not self.dense:
            return F.mse_loss(pred, target)
        return (F.mse_loss(pred[:, :1], target[:, :1]) + F.mse_loss(pred[:, 1:], target[:, 1:])) / 2


class TeacherTarget:
    """MONAI's `prepare_batch` for distillation: the image, and the features of the frozen teacher as its target.

    The teacher is not a submodule of the student, so neither its state dict nor the optimiser holds it. It runs in
    evaluation mode, without gradients, on the device of the batch.

    Args:
        teacher: F, from images `[B, 1, H, W]` in [0, 1] to features `[B, ..., D]`.
        normalize: apply a LayerNorm without parameters over D.
        amp: run the teacher under bfloat16 autocast.
        dense: take the teacher's `dense_features`: `[B, 1 + N, D]`, the pooled vector first.
        statistics: those of the student, by which the targets are standardised after the LayerNorm.
    """

    def __init__(
        self,
        teacher: nn.Module,
        normalize: bool | str = True,
        amp: bool | str = False,
        dense: bool | str = False,
        statistics: TargetStatistics | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.normalize = flag(normalize, "normalize_target")
        self.amp = flag(amp, "amp")
        self.dense = flag(dense, "dense")
        self.statistics = statistics

    def __call__(
        self,
        batchdata: Mapping[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """`{"image": [B, 1, H, W]}` -> the image and its target `[B, ..., D]` in float32, both on `device`."""
        image = convert_to_tensor(batchdata[Keys.IMAGE], track_meta=False).to(device, non_blocking=non_blocking)
        target = self.features(image)
        return image, target if self.statistics is None else self.statistics(target)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """The teacher's features of `[B, 1, H, W]`, after the LayerNorm, not standardised: `[B, ..., D]` in float32."""
        teacher: Any = self.teacher.to(image.device)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.amp):
            target = (teacher.dense_features(image) if self.dense else teacher(image)).float()
        return F.layer_norm(target, target.shape[-1:]) if self.normalize else target


def measure_targets(target: TeacherTarget, batches: Iterable[Mapping[str, Tensor]], device: torch.device | str) -> None:
    """Measure the statistics of the teacher's features on the first `BATCHES` of `batches`, if the target has any.

    Call it in all processes before a resume, which restores the statistics of the interrupted run.
    """
    if target.statistics is not None:
        images = (convert_to_tensor(batch[Keys.IMAGE], track_meta=False) for batch in islice(batches, BATCHES))
        if idist.get_rank() == 0:
            logger.info(f"targets: measuring their mean and deviation on up to {BATCHES} batches")
        target.statistics.measure(target.features(image.to(device)) for image in images)
