"""A training step of a mean teacher with bidirectional copy-paste, as the `prepare_batch` of a `SupervisedTrainer`.

BCP: Bai et al., CVPR 2023, https://arxiv.org/abs/2305.00673. Mean teacher and its ramp: Tarvainen and Valpola,
https://arxiv.org/abs/1703.01780. Differs from BCP in: the labelled slices are learned as they are too, not only mixed,
so that a run starts as without unlabelled scans; the weight of pseudo-labels rises by a ramp; a threshold on their
probability; no largest component of the pseudo-labels, which slices of 2-D networks do not have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.engines import PrepareBatchExtraInput
from torch import Tensor

from samora_monai.errors import InputError
from samora_monai.handlers import WeightAverage
from samora_monai.semi_supervised.paired_slices import UNLABELED
from samora_monai.semi_supervised.two_views import WEAK
from samora_monai.settings import flag

BOX = 2 / 3  # side of the box that is pasted, in sides of the slice: BCP's beta


class MixedBatch(PrepareBatchExtraInput):
    """What the network gets of a batch: the labelled slices and, for items of `PairedSlices`, as many mixed ones.

    With a random box M of each slice, labelled slice x and its label y, strong view u of the unlabelled slice and
    pseudo-label v, the most probable classes of its weak view according to the average of the weights (the teacher):

        inwards, of one half:    M x + (1 - M) u   with the label  M y + (1 - M) v
        outwards, of the other:  M u + (1 - M) x   with the label  M v + (1 - M) y

    A pixel has weight 1 in the loss where its label is true, and `unlabeled_weight * ramp` where it is a pseudo-label
    whose probability is at least `confidence`; else 0. Without unlabelled slices it is a `PrepareBatchExtraInput`.

    Args:
        average: the teacher.
        unlabeled_weight: BCP's alpha.
        confidence: lowest probability of a pseudo-label that counts; 0 for all, as in BCP.
        ramp_up: fraction of the training in which the weight rises from 0 to `unlabeled_weight`; 0 for no rise.
        amp: run the teacher under bfloat16 autocast.
        extra_keys: `["label"]` if the network gets the label as its second argument, else `[]`.
    """

    def __init__(
        self,
        average: WeightAverage,
        unlabeled_weight: float = 0.5,
        confidence: float = 0.0,
        ramp_up: float = 0.25,
        amp: bool | str = False,
        extra_keys: Sequence[str] = ("label",),
    ) -> None:
        super().__init__(extra_keys)
        self.average = average
        self.ramp_up = ramp_up
        self.unlabeled_weight = unlabeled_weight
        self.confidence = confidence
        self.amp = flag(amp, "amp")

    def __call__(
        self,
        batchdata: dict[str, Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple, dict]:
        """Return images, labels, and further arguments of the network.

        With unlabelled slices the images are `[2 B, C, S, S]`, the labels `[2 B, 2, S, S]`: class numbers and the
        weights of the pixels, as `SegmentationLoss` takes them.
        """
        image, label, args, named = super().__call__(batchdata, device, non_blocking, **kwargs)
        if UNLABELED not in batchdata:
            return image, label, args, named
        strong, weak = (batchdata[key].to(device, non_blocking=non_blocking) for key in (UNLABELED, WEAK))
        pseudo, weight = self.teach(weak)
        own = random_boxes(len(image), image.shape[-2:]).to(image.device)  # pixels of the labelled slice
        half = len(own) // 2
        own = torch.cat([own[:half], ~own[half:]])
        labels = torch.cat([label, torch.where(own, label, pseudo.to(label.dtype))])
        weights = torch.cat([torch.ones_like(weight), torch.where(own, 1.0, weight)])
        images = torch.cat([image, torch.where(own, image, strong)])
        return images, torch.cat([labels.to(weights.dtype), weights], 1), tuple(labels for _ in args), named

    @torch.no_grad()
    def teach(self, weak: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, S, S]` in [0, 1] -> pseudo-labels `[B, 1, S, S]`, and the weights of their pixels, float32."""
        if self.average.decay is None:
            raise InputError("unlabelled scans need an average of the weights as teacher, got ema null; use --ema 0.99")
        with torch.autocast(weak.device.type, torch.bfloat16, enabled=self.amp):
            logits = self.average.module(weak)
        probability, pseudo = logits.float().softmax(1).max(1, keepdim=True)
        weight = self.unlabeled_weight * ramp(self.average.progress, self.ramp_up)
        return pseudo, weight * (probability >= self.confidence).float()


def ramp(progress: float, length: float) -> float:
    """Return `exp(-5 (1 - t)^2)` with `t = progress / length`, at most 1: from 0.007 up to 1; 1 for a length of 0."""
    return math.exp(-5 * (1 - min(progress / length, 1.0)) ** 2) if length > 0 else 1.0


def random_boxes(count: int, size: Sequence[int]) -> Tensor:
    """Return `[count, 1, H, W]`, true in a box of `BOX` of each side at a random place; drawn by torch's generator."""
    inside = []
    for axis, length in enumerate(size):
        side = max(1, int(BOX * length))
        first = torch.randint(length - side + 1, (count, 1))
        places = torch.arange(length)
        within = (places >= first) & (places < first + side)  # [count, length]
        inside.append(within[:, None, :, None] if axis == 0 else within[:, None, None, :])
    return inside[0] & inside[1]
