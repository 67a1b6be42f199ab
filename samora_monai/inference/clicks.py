"""Segment an object of a scan by prompts, slice by slice: points, a box, a draft, and the masks of neighbouring slices.

SAM: https://arxiv.org/abs/2304.02643, SAM 2: https://arxiv.org/abs/2408.00714. Differs from their predictors in: slices
are resized to squares by SAM too, as in MedSAM (https://arxiv.org/abs/2304.12306); several points are answered one
after the other, each with the logits before it as mask prompt, so that an answer depends on its prompts alone.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samora_monai.errors import InputError
from samora_monai.networks import Segmenter
from samora_monai.networks.blocks import Features
from samora_monai.networks.framing import resize_image

MASK_LOGIT = 7.0  # of a draft, inside; the negative outside
SAME_OBJECT = 0.3  # Dice with the neighbouring slice below which an object has ended
MARGIN = 1  # voxels around the box of a neighbouring slice
Point = tuple[float, float]  # row, column


@dataclass(frozen=True)
class SlicePrompts:
    """Prompts for one slice, in voxels.

    Args:
        positive, negative: points (row, column) inside and outside the object.
        box: first row, first column, last row and last column of the object.
        draft: `[H, W]`, nonzero inside: an earlier mask of the object, or that of a neighbouring slice.
    """

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    draft: np.ndarray | None = None

    def __bool__(self) -> bool:
        """Whether anything says what the object is: a negative point alone does not."""
        return bool(self.positive) or self.box is not None or (self.draft is not None and bool(self.draft.any()))


class PromptedSegmenter:
    """Answer prompts by a promptable network, with the embedding of each slice computed once.

    Args:
        net: with SAM's decoder, in evaluation mode, on any device.
        remembered: number of slices whose embeddings are kept, the last used ones.
    """

    def __init__(self, net: Segmenter, remembered: int = 64) -> None:
        self.net = net
        self.remembered = remembered
        self._embeddings: OrderedDict[Hashable, Features] = OrderedDict()

    def segment(
        self, volume: np.ndarray, prompts: Mapping[int, SlicePrompts], name: Hashable, reach: range | int = 0
    ) -> np.ndarray:
        """Segment the slices that have prompts, and their neighbours.

        A neighbour's prompts are the mask of the slice before it and the box around that. Each slice is reached from
        the nearest slice with prompts; the object ends where a mask is empty or hardly overlaps with the one before.

        Args:
            volume: `[H, W, Z]` in [0, 1].
            prompts: by index of the slice along the last axis.
            name: of the volume, for its embeddings.
            reach: slices on each side that are searched beyond those with prompts, or the range of slices that may
                be searched.

        Returns:
            mask `[H, W, Z]`, uint8, 1 inside.

        Raises:
            InputError: no prompt says what the object is, or a point or a slice is outside of the volume.
        """
        seeds = sorted(index for index, given in prompts.items() if given)
        if not seeds:
            raise InputError(
                "no point inside the object, no box and no draft were given; a point outside alone does not tell what "
                "to segment"
            )
        depth = volume.shape[-1]
        if seeds[0] < 0 or seeds[-1] >= depth:
            raise InputError(f"the prompts are in slice {seeds[-1]}, but the scan has slices 0 to {depth - 1}")
        if isinstance(reach, int):
            reach = range(seeds[0] - reach, seeds[-1] + reach + 1)
        found = np.zeros(volume.shape, np.uint8)
        for seed in seeds:
            found[..., seed] = self.segment_slice(volume[..., seed], prompts[seed], (name, seed))
        for position, seed in enumerate(seeds):
            # as far as the middle between this slice with prompts and the next one
            before = (seeds[position - 1] + seed) // 2 if position else reach.start - 1
            after = (seed + seeds[position + 1]) // 2 if seed != seeds[-1] else reach.stop - 1
            for indices in (range(seed + 1, min(after, depth - 1) + 1), range(seed - 1, max(before, -1), -1)):
                mask = found[..., seed]
                for index in indices:
                    if not mask.any():
                        break
                    mask = self._neighbour(volume[..., index], mask, (name, index))
                    found[..., index] = mask
        return found

    @torch.no_grad()
    def segment_slice(self, image: np.ndarray, prompts: SlicePrompts, name: Hashable) -> np.ndarray:
        """Mask `[H, W]`, bool, of one slice `[H, W]` in [0, 1]; `name` identifies the slice."""
        height, width = image.shape
        for row, column in (*prompts.positive, *prompts.negative):
            if not (0 <= row < height and 0 <= column < width):
                raise InputError(f"point ({row:g}, {column:g}) is outside of the slice of {height} x {width} voxels")
        net = self.net
        scale = torch.tensor([net.image_size / width, net.image_size / height])  # of x and y
        square = self._square(image)
        features = self._embedding(square, name)
        record: dict[str, Any] = {"image": square, "original_size": (height, width)}
        if prompts.box is not None:
            first_row, first_column, last_row, last_column = prompts.box
            corners = torch.tensor([[first_column, first_row], [last_column + 1, last_row + 1]]) * scale - 0.5
            record["boxes"] = corners.clamp(0, net.image_size - 1).reshape(1, 4).to(net.pixel_mean)
        if prompts.draft is not None:
            record["mask_inputs"] = self._mask_prompt(prompts.draft)
        labelled = [(point, 1) for point in prompts.positive] + [(point, 0) for point in prompts.negative]
        coordinates = [[(column + 0.5, row + 0.5) for (row, column), _ in labelled]]
        points = (torch.tensor(coordinates).reshape(1, -1, 2) * scale - 0.5).to(net.pixel_mean)
        labels = torch.tensor([[label for _, label in labelled]]).to(net.pixel_mean)
        for count in range(min(1, len(labelled)), len(labelled) + 1):
            if count:
                record |= {"point_coords": points[:, :count], "point_labels": labels[:, :count]}
            answer = net.answer(features, record, multimask_output=False)
            record["mask_inputs"] = answer["low_res_logits"]
        return (answer["mask_logits"][0, 0] > 0).cpu().numpy()

    def _neighbour(self, image: np.ndarray, mask: np.ndarray, name: Hashable) -> np.ndarray:
        """The mask of a slice beside one with `mask`, empty if the object has ended."""
        new = self.segment_slice(image, SlicePrompts(box=box_of(mask, MARGIN), draft=mask), name)
        overlap = 2 * np.count_nonzero(new & (mask > 0)) / max(1, np.count_nonzero(new) + np.count_nonzero(mask))
        return new if overlap >= SAME_OBJECT else np.zeros_like(new)

    def _square(self, image: np.ndarray) -> Tensor:
        side = self.net.image_size
        pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None].to(self.net.pixel_mean)
        return resize_image(pixels, (side, side))[0]

    def _embedding(self, square: Tensor, name: Hashable) -> Features:
        if name not in self._embeddings:
            self._embeddings[name] = self.net.embed([square])
            while len(self._embeddings) > self.remembered:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(name)
        return self._embeddings[name]

    def _mask_prompt(self, draft: np.ndarray) -> Tensor:
        """`[H, W]` -> logits `[1, 1, S/4, S/4]`."""
        side = self.net.image_size // 4
        inside = torch.from_numpy((draft > 0).astype(np.float32))[None, None].to(self.net.pixel_mean)
        return (2 * resize_image(inside, (side, side)) - 1) * MASK_LOGIT


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[float, float, float, float]:
    """First row, first column, last row and last column of a mask that is not empty, widened by `margin` voxels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (rows[0] - margin, columns[0] - margin, rows[-1] + margin, columns[-1] + margin)


def with_draft(prompts: Mapping[int, SlicePrompts], draft: np.ndarray) -> dict[int, SlicePrompts]:
    """The prompts with the slices of `draft` `[H, W, Z]` as their drafts, where it is not empty."""
    return {
        index: dataclasses.replace(given, draft=draft[..., index]) if draft[..., index].any() else given
        for index, given in prompts.items()
    }
