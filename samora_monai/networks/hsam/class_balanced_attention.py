"""CMAttn, H-SAM's class-balanced mask-guided self-attention, after the paper (https://arxiv.org/abs/2403.18271).

With Q the mask tokens and X the image tokens from the first decoder, p a position of the image embedding:

    F = Q X^T, each map of F normalised over space              mask features of the first stage, one map per class
    F_p += s(p) N(0, 1)                                         noise, in training with a label
    s(c) = noise * ln(f_max / f_c) / ln(f_max / f_min)          f_c the pixels of class c in the labels of the batch
    g_p = w . (H_p + MLP(H_p)),  H = W F + SelfAttention(W F)   attention to positions with similar mask features
    A_p = G^2 softmax_p(g)                                      gate, mean 1 over the image

The image embedding of the second stage is multiplied by 1 + A. w starts at zero, so that A = 1 initially: the doubled
embedding that the release computes with any weights of its CMAttn.

Differs from the release (where a softmax over an axis of one element makes the gate constant) in:
- the gate is normalised over space;
- self-attention runs over positions with class features, so that no weight depends on the image size;
- the noise follows class frequencies instead of a list for nine classes, and its label is resampled instead of cropped;
  the noise of a position is the mean over its pixels, so that structures smaller than a token count.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.layers import MLPBlock
from samora_monai.networks.two_way_transformer import TokenAttention

CLASS_NOISE = 0.35  # of the rarest class, in standard deviations of a mask feature; the largest value of H-SAM


class ClassBalancedAttention(nn.Module):
    """Gate on the image embedding of the second stage, from T = `num_classes` mask features of the first."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_classes, width)
        self.self_attn = TokenAttention(width, width, num_heads=4)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, 4 * width, nn.ReLU)
        self.norm2 = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1, bias=False)  # the softmax would cancel a bias
        nn.init.zeros_(self.gate.weight)

    def forward(self, mask_tokens: Tensor, image_tokens: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the gate A `[B, 1, G, G]`, at least 0, with mean 1 over each image.

        Args:
            mask_tokens, image_tokens: `[B, T, dim]` and `[B, G * G, dim]` of the first decoder.
            label: `[B, 1, H, W]` class numbers, for the noise in training.
        """
        tokens = image_tokens.shape[1]
        grid = int(tokens**0.5)
        features = F.layer_norm(mask_tokens @ image_tokens.transpose(1, 2), (tokens,))  # [B, T, G * G]
        if self.training and label is None:
            warnings.warn("class-balanced attention trains without its noise: call network(image, label)", stacklevel=2)
        elif self.training and label is not None:
            deviation = class_noise(label.to(features.device), features.shape[1], grid)
            features = features + deviation * torch.randn_like(features)
        x = self.embed(features.transpose(1, 2))  # [B, G * G, width]
        x = self.norm1(x + self.self_attn(x, x, x))
        x = self.norm2(x + self.mlp(x))
        return (tokens * self.gate(x).softmax(1)).transpose(1, 2).unflatten(2, (grid, grid))


def class_noise(label: Tensor, num_classes: int, grid: int, noise: float = CLASS_NOISE) -> Tensor:
    """Standard deviation of the noise at each position: class numbers `[B, 1, H, W]` -> `[B, 1, grid * grid]`.

    The rarest class that is present has the standard deviation `noise`, the most frequent one has none.
    """
    label = label.long()
    flat = label.flatten()
    # `bincount` would wait for the GPU, because the size of its result depends on the labels
    pixels = flat.new_zeros(num_classes).scatter_add_(0, flat, torch.ones_like(flat))
    rarity = torch.where(pixels > 0, pixels.max() / pixels.clamp(min=1), 1).log()
    deviation = noise * rarity / rarity.max().clamp(min=1e-6)  # all 0 if all classes are equally frequent
    return F.interpolate(deviation[label], (grid, grid), mode="area").flatten(2)
