"""The anchor: keep the image embedding, which the mask decoder reads, near that of the base while an expert trains.

    L = L(pretext task) + lambda |N(x) - N_0(x)|^2 / var N_0        (N the neck's output, N_0 that without the expert)

The variance is that of each channel over slices and positions. Without an anchor nothing bounds the tokens: the student
normalises its features before the head, and the neck ends with a LayerNorm, which ignores their scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samora_monai.pretraining.denoising import DenoisingStudent
from samora_monai.pretraining.distillation import DistillationStudent
from samora_monai.settings import check_run_settings


class AnchoredStudent(nn.Module):
    """A student, and how far its expert moves the embedding.

    Args:
        student: a network that runs the encoder of its `segmenter` once.
    """

    def __init__(self, student: DistillationStudent | DenoisingStudent) -> None:
        super().__init__()
        self.student = student

    def describe(self) -> str:
        """Describe the network in one line."""
        return f"{self.student.describe()}; anchored to the base's embedding"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, in_channels, H, W]` in [0, 1] -> the student's output, and `|N - N_0|^2 / var N_0`, a scalar."""
        segmenter = self.student.segmenter
        encoder = segmenter.image_encoder
        blocks = encoder.encoder_blocks()
        tokens: list[Tensor] = []  # that the student computes on its way
        hooks = [blocks[i].register_forward_hook(lambda *call: tokens.append(call[-1])) for i in encoder.neck_inputs]
        try:
            output = self.student(x)
        finally:
            for hook in hooks:
                hook.remove()
        embedding = encoder.apply_neck(tokens).embedding
        with torch.no_grad(), encoder.without_experts():
            base = encoder.features(segmenter.preprocess(x)).embedding.float()
        variance = base.var((0, 2, 3), correction=0).mean()
        return output, (embedding.float() - base).square().mean() / variance


class AnchoredLoss(nn.Module):
    """`loss(output, target) + weight * drift`, with both outputs of `AnchoredStudent`."""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.weight = weight

    def forward(self, pred: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        output, drift = pred
        return self.loss(output, target) + self.weight * drift


def anchored(student: DistillationStudent | DenoisingStudent, anchor: float) -> nn.Module:
    """The student as it is if `anchor` is 0, else an `AnchoredStudent`.

    Raises:
        InputError: `anchor` is not a number of at least 0.
    """
    check_run_settings(anchor=anchor)
    return AnchoredStudent(student) if anchor else student


def anchored_loss(loss: nn.Module, anchor: float) -> nn.Module:
    """The loss for `anchored`."""
    return AnchoredLoss(loss, anchor) if anchor else loss
