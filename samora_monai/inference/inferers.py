"""Slice-wise inference on volumes.

Differs from `monai.inferers.SliceInferer` in: label maps instead of logits, computed per batch of slices on the device,
so that memory does not grow with classes times voxels; autocast also on CPUs; outputs of any shape; neighbouring slices
as further channels; all slices of air, whose grey values are 0, get the logits of one such slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from samora_monai.data.slice_reader import neighbours
from samora_monai.errors import InputError
from samora_monai.inference.smoothing import keep_largest, radius_of, smoothed
from samora_monai.inference.uncertainty import ENTROPY, FoundEntropy
from samora_monai.inference.views import averaged
from samora_monai.settings import flag


class SliceLabelInferer(Inferer):
    """Segment a volume in batches of slices.

    Args:
        batch_size: slices in one forward pass.
        slice_axis: axis of `[X, Y, Z]` that is cut into slices; 2 is axial in RAS.
        amp: run the network under bfloat16 autocast.
        context: number of neighbouring slices on each side that are further channels of each slice, as in
            `samora_monai.data.SliceDataset`.
        smoothing, largest_component: see `samora_monai.data.Postprocessing`.
        tta: average over views of each slice, see `samora_monai.inference.views`; takes three times as long.
    """

    def __init__(
        self,
        batch_size: int = 8,
        slice_axis: int = 2,
        amp: bool | str = False,
        context: int = 0,
        smoothing: float = 0.0,
        largest_component: Sequence[int] = (),
        tta: bool | str = False,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.slice_axis = slice_axis
        self.amp = flag(amp, "amp")
        self.context = context
        self.smoothing = smoothing
        self.largest_component = tuple(largest_component)
        self.tta = flag(tta, "tta")

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Segment volumes.

        Args:
            inputs: `[B, C, X, Y, Z]` in [0, 1]; for smoothing a `MetaTensor`, whose affine states the spacing.
            network: returns logits `[b, K, X, Y]` of slices `[b, C, X, Y]`.

        Returns:
            labels `[B, 1, X, Y, Z]`, uint8, with device and metadata of `inputs`; with metadata, the `FoundEntropy` of
            each volume under `ENTROPY`, `[B]`, before the largest component is taken.

        Raises:
            InputError: smoothing without a spacing.
        """
        axis = self.slice_axis + 2
        labels = torch.empty((len(inputs), 1, *inputs.shape[2:]), dtype=torch.uint8, device=inputs.device)
        # slices first: [B, C, X, Y, Z] -> [B, Z, C, X, Y]; labels are written through a view of the same kind
        source, target = convert_to_tensor(inputs, track_meta=False).movedim(axis, 1), labels.movedim(axis, 1)
        widths = self._widths(inputs) if self.smoothing else [0.0] * len(inputs)
        entropies = [FoundEntropy() for _ in range(len(inputs))]
        for volume, out, width, entropy in zip(source, target, widths, entropies, strict=True):
            start = 0
            for scores in smoothed(self._logits(volume, network, *args, **kwargs), width):
                # 17 times faster than argmax on a CPU
                found = scores.max(1, keepdim=True).indices.to(torch.uint8)
                out[start : start + len(scores)] = found
                entropy.add(scores, found, logits=not radius_of(width))
                start += len(scores)
        for volume in labels[:, 0] if self.largest_component else ():
            keep_largest(volume, self.largest_component)
        labels = convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]
        if isinstance(labels, MetaTensor):
            labels.meta[ENTROPY] = torch.tensor([entropy.mean() for entropy in entropies])
        return labels

    def _widths(self, inputs: Tensor) -> list[float]:
        """The standard deviation of the smoothing, in slices, of each volume."""
        affine = getattr(inputs, "affine", None)
        if affine is None:
            raise InputError("smoothing needs the distance of the slices, but the volume has no affine; give 0")
        affines = affine if affine.ndim == 3 else affine.expand(len(inputs), 4, 4)
        return [self.smoothing / float(affine_to_spacing(matrix)[self.slice_axis]) for matrix in affines]

    def _logits(self, volume: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """`[Z, C, X, Y]` -> `[b, K, X, Y]` of the slices in their order."""

        def view_logits(slices: Tensor) -> Tensor:
            with torch.autocast(slices.device.type, torch.bfloat16, enabled=self.amp):
                return network(slices, *args, **kwargs)

        def logits(slices: Tensor) -> Tensor:
            return averaged(slices, view_logits) if self.tta else view_logits(slices)

        channels = torch.from_numpy(neighbours(len(volume), self.context)).to(volume.device)
        filled = volume.flatten(1).any(1)[channels].any(1)  # slices that hold more than air
        if not filled.all():
            air = logits(volume.new_zeros(1, channels.shape[1] * volume.shape[1], *volume.shape[2:]))
        start = 0
        for numbers in filled.nonzero()[:, 0].split(self.batch_size) if filled.any() else ():
            first, end = int(numbers[0]), int(numbers[-1]) + 1
            if start < first:
                yield air.expand(first - start, -1, -1, -1)
            scores = logits(
                volume[channels[numbers]].flatten(1, 2)
            )  # [b, 2 * context + 1, C, ...] -> [b, channels, ...]
            if len(scores) < end - first:  # air between them
                found, scores = scores, air.repeat(end - first, 1, 1, 1)
                scores[numbers - first] = found
            yield scores
            start = end
        if start < len(volume):
            yield air.expand(len(volume) - start, -1, -1, -1)


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
