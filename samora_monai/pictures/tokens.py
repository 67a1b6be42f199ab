"""Pictures of the patch expert: the tokens of a slice as colours, with the expert and without.

Red, green and blue are the first three principal components of the tokens, as in DINOv2
(https://arxiv.org/abs/2304.07193): similar tokens have similar colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.utils import CommonKeys as Keys
from torch import Tensor

from samora_monai.inference.inferers import SliceStackInferer
from samora_monai.networks import Segmenter
from samora_monai.networks.framing import resize_image
from samora_monai.pictures.expert import ExpertPictures, upright
from samora_monai.pictures.panels import Panel

QUANTILES = (0.01, 0.99)  # of a component, which become 0 and 1


class WithAndWithoutInferer(SliceStackInferer):
    """Apply a network to every slice, with its experts and without them.

    Args:
        segmenter: the network that holds the experts.
        batch_size: slices in one forward pass.
    """

    def __init__(self, segmenter: Segmenter, batch_size: int = 8) -> None:
        super().__init__(batch_size)
        self.segmenter = segmenter

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """`[B, C, X, Y, Z]` in [0, 1] -> `[B, 2, ..., Z]`, with the experts first."""
        expert = super().__call__(inputs, network, *args, **kwargs)
        with self.segmenter.image_encoder.without_experts():
            base = super().__call__(inputs, network, *args, **kwargs)
        return torch.stack([expert, base], 1)


def principal_colors(tokens: Tensor, brightness: Tensor) -> tuple[Tensor, Tensor]:
    """Map tokens to colours by their first three principal components.

    The sign of a component, which is arbitrary, is chosen such that it increases with the brightness.

    Args:
        tokens: `[K, dim, h, w]` of K slices, which share their components.
        brightness: `[K, h, w]`, of the slices at the tokens.

    Returns:
        RGB `[K, h, w, 3]` in [0, 1], and the fraction of the variance in each component `[3]`.
    """
    t = tokens.permute(0, 2, 3, 1).flatten(0, 2).double()  # [N, dim]
    t = t - t.mean(0)
    variances, axes = torch.linalg.eigh(t.T @ t)  # increasing
    scores = t @ axes[:, -3:].flip(1)  # [N, 3]
    b = brightness.flatten().double()
    scores = scores * torch.where((b - b.mean()) @ scores < 0, -1, 1)
    low, high = torch.quantile(scores, torch.tensor(QUANTILES, dtype=scores.dtype), dim=0)
    colors = ((scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).eps)).clamp(0, 1)
    parts = variances[-3:].flip(0).clamp_min(0) / variances.sum().clamp_min(torch.finfo(scores.dtype).tiny)
    return colors.reshape(*brightness.shape, 3).float(), parts.float()


class TokenPictures(ExpertPictures):
    """Handler that draws three slices of a case, each beside its tokens with and without the expert.

    The evaluator's output holds the slices `[1, X, Y, K]` and the tokens `[2, dim, g, g, K]` of
    `WithAndWithoutInferer`. Each of the two has components of its own: compare colours only within a column.
    """

    def draw(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Draw a row for each slice, and log how much the expert changes the tokens."""
        slices = output[Keys.IMAGE].movedim(-1, 0).cpu()  # [K, 1, X, Y]
        both = output[Keys.PRED].movedim(-1, 1).float().cpu()  # [2, K, dim, g, g]
        brightness = resize_image(slices, (both.shape[-2], both.shape[-1]))[:, 0]
        maps, parts = zip(*(principal_colors(tokens, brightness) for tokens in both), strict=True)
        extent = tuple(case["extent"].tolist())
        rows = []
        for k, index in enumerate(case["slices"].tolist()):
            row = [Panel(upright(slices[k, 0]), f"slice {index}" if len(slices) > 1 else "picture", extent)]
            for name, colors in zip(("with the patch expert", "without the expert"), maps, strict=True):
                picture = upright(colors[k].movedim(-1, 0)).transpose(1, 2, 0)
                row.append(Panel(picture, name if k == 0 else "", extent, smooth=False))
            rows.append(row)
        expert, base = both - both.mean((1, 3, 4), keepdim=True)  # without the mean over all tokens
        change = float((expert - base).norm() / base.norm())
        shown = " and ".join(f"{part.sum():.0%}" for part in parts)
        result = f"expert moves tokens by {change:.0%} of their spread; colours show {shown} of the variance"
        self.save(case["case"], case["path"], rows, "principal components of the tokens", result)
