"""CMAttn, H-SAM's class-balanced mask-guided self-attention, as the paper means it (https://arxiv.org/abs/2403.18271).

With Q the mask tokens and X the image tokens that leave the first decoder, p and q positions of the image embedding:

    F = Q X^T, every map of F normalised over space             the first stage's mask features, one map per class
    F_p += s(p) N(0, 1)                                         in training, given the label: the noise
    s(c) = noise * ln(f_max / f_c) / ln(f_max / f_min)          f_c the pixels of class c in the batch's label
    g_p = w . (H_p + MLP(H_p)),  H = W F + SelfAttention(W F)   positions attend to those with like mask features
    A_p = G^2 softmax_p(g)                                      the gate: mean 1 over the image

The second stage's image embedding is multiplied by 1 + A. As w starts at zero so does the network at A = 1, the doubled
embedding that the release computes whatever its CMAttn's weights.

Differs from the release (where a softmax over an axis of one element makes the gate a constant) in:
- the gate is normalised over space;
- self-attention runs over positions with class features, so that no weight depends on the size of the image;
- the noise follows frequencies, not a list for nine classes, and its label is resampled, not cut off; the noise of a
  position is the mean over its pixels, so that structures smaller than a token count.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.layers import MLPBlock
from samora_monai.networks.two_way_transformer import TokenAttention

CLASS_NOISE = 0.35  # of the rarest class, in standard deviations of a mask feature (H-SAM's largest value)


class ClassBalancedAttention(nn.Module):
    """Where the second stage should look: a gate on the image embedding from the first stage's mask features.

    Args:
        num_classes: T, one mask feature map for each.
        width: inner width.
        num_heads: heads of the self-attention.
        noise: of the rarest class in training.
    """

    def __init__(self, num_classes: int, width: int, num_heads: int = 4, noise: float = CLASS_NOISE) -> None:
        super().__init__()
        self.noise = noise
        self.embed = nn.Linear(num_classes, width)
        self.self_attn = TokenAttention(width, width, num_heads)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, 4 * width, nn.ReLU)
        self.norm2 = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1, bias=False)  # the softmax would take no notice of a bias
        nn.init.zeros_(self.gate.weight)

    def forward(self, mask_tokens: Tensor, image_tokens: Tensor, label: Tensor | None = None) -> Tensor:
        """The gate A.

        Args:
            mask_tokens: `[B, T, dim]` of the first decoder.
            image_tokens: `[B, G * G, dim]` of the first decoder.
            label: `[B, 1, H, W]` class numbers, for the noise of a training step.

        Returns:
            `[B, 1, G, G]`, at least 0 and with mean 1 over every image.
        """
        tokens = image_tokens.shape[1]
        grid = int(tokens**0.5)
        features = mask_tokens @ image_tokens.transpose(1, 2)  # [B, T, G * G]
        features = F.layer_norm(features, (tokens,))
        if self.training and label is None:
            warnings.warn("class-balanced attention trains without its noise: call network(image, label)", stacklevel=2)
        if self.training and label is not None:
            deviation = class_noise(label.to(features.device), features.shape[1], grid, self.noise)
            features = features + deviation * torch.randn_like(features)
        x = self.embed(features.transpose(1, 2))  # [B, G * G, width]
        x = self.norm1(x + self.self_attn(x, x, x))
        x = self.norm2(x + self.mlp(x))
        return (tokens * self.gate(x).softmax(1)).transpose(1, 2).unflatten(2, (grid, grid))


def class_noise(label: Tensor, num_classes: int, grid: int, noise: float = CLASS_NOISE) -> Tensor:
    """Standard deviation of the noise at every position.

    Args:
        label: `[B, 1, H, W]` class numbers.
        num_classes: of `label`.
        grid: side G of the image embedding.
        noise: deviation of the rarest class that is there; the commonest has none.

    Returns:
        `[B, 1, G * G]`.
    """
    label = label.long()
    pixels = torch.bincount(label.flatten(), minlength=num_classes)
    rarity = torch.where(pixels > 0, pixels.max() / pixels.clamp(min=1), 1).log()
    deviation = noise * rarity / rarity.max().clamp(min=1e-6)  # all 0 where all classes are equally common
    return F.interpolate(deviation[label], (grid, grid), mode="area").flatten(2)
