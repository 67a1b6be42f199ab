"""Slice-wise inference on volumes.

Differs from `monai.inferers.SliceInferer` in: label maps instead of logits, computed per batch of slices on the device,
so that memory does not grow with classes times voxels; autocast also on CPUs; outputs of any shape; neighbouring slices
as further channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from samora_monai.data.slice_reader import neighbours
from samora_monai.settings import flag


class SliceLabelInferer(Inferer):
    """Segment a volume in batches of slices.

    Args:
        batch_size: slices in one forward pass.
        slice_axis: axis of `[X, Y, Z]` that is cut into slices; 2 is axial in RAS.
        amp: run the network under bfloat16 autocast.
        context: number of neighbouring slices on each side that are further channels of each slice, as in
            `samora_monai.data.SliceDataset`.
    """

    def __init__(self, batch_size: int = 8, slice_axis: int = 2, amp: bool | str = False, context: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.slice_axis = slice_axis
        self.amp = flag(amp, "amp")
        self.context = context

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`[B, C, X, Y, Z]` in [0, 1] -> labels `[B, 1, X, Y, Z]`, uint8, with device and metadata of `inputs`."""
        axis = self.slice_axis + 2
        labels = torch.empty((len(inputs), 1, *inputs.shape[2:]), dtype=torch.uint8, device=inputs.device)
        # slices first: [B, C, X, Y, Z] -> [B, Z, C, X, Y]; labels are written through a view of the same kind
        source, target = convert_to_tensor(inputs, track_meta=False).movedim(axis, 1), labels.movedim(axis, 1)
        channels = torch.from_numpy(neighbours(source.shape[1], self.context)).to(inputs.device)
        for volume, out in zip(source, target, strict=True):
            for picked, part in zip(channels.split(self.batch_size), out.split(self.batch_size), strict=True):
                chunk = volume[picked].flatten(1, 2)  # [b, 2 * context + 1, C, X, Y] -> [b, channels, X, Y]
                with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
                    logits = network(chunk.contiguous(), *args, **kwargs)
                part.copy_(logits.max(1, keepdim=True).indices)  # 17 times faster than argmax on a CPU
        return convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]


class SliceStackInferer(Inferer):
    """Apply a network to volumes in batches of slices and stack its outputs, e.g. features or tokens.

    Args:
        batch_size: slices in one forward pass.
    """

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`[B, C, X, Y, Z]` in [0, 1] -> `[B, ..., Z]` from outputs `[slices, ...]` of the network."""
        slices = convert_to_tensor(inputs, track_meta=False).movedim(-1, 1).flatten(0, 1)  # [B * Z, C, X, Y]
        outputs = [network(chunk.contiguous(), *args, **kwargs) for chunk in slices.split(self.batch_size)]
        return torch.cat(outputs).unflatten(0, (len(inputs), -1)).movedim(1, -1)
