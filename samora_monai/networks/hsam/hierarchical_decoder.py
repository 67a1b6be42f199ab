"""H-SAM's second decoder: decodes again, guided by the masks of the first, up to the resolution of the input.

H-SAM (https://arxiv.org/abs/2403.18271, MIT), on top of SAM's mask decoder (Apache-2.0). With e the image embedding, n
the dense prompt ("no mask") and m the logits of the first decoder:

    prior = softmax_classes(m resized to the grid of e)
    src = 2 (e + noise + n)                           noise in training only; or (1 + A)(e + noise + n), see below
    softmax(Q K^T / sqrt(d)) * prior                  learnable mask cross-attention, in both directions
    features = up(up([decoder 2's, decoder 1's]))     hierarchical pixel decoder: 4 G -> 16 G, the side of the input

The first decoder is SAM's with another order of its blocks (`MaskDecoder(self_attention_first=False)`). On SAM 2, both
decoders add the encoder's finer maps while they upscale, projected by the first.

Differs from H-SAM's code in:
- one decoder for all grids and class counts, where H-SAM has one copy for 224 and another for 512;
- CMAttn of the release always doubles the embedding, with any weights; here this factor is a constant without weights
  (`class_balanced_attention` implements the paper's);
- H-SAM sets attention rows to zero if their logits sum to exactly the number of keys; this rule is left out, because it
  would make results depend on rounding, which differs between devices and precisions;
- LayerNorms that H-SAM registers in its cross-attentions and never calls are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.hsam.class_balanced_attention import ClassBalancedAttention
from samora_monai.networks.layers import MLP, LayerNorm2d
from samora_monai.networks.mask_decoder import Decoded, hyper_masks, output_upscaling, upscale
from samora_monai.networks.two_way_transformer import TwoWayTransformer


class HierarchicalDecoder(nn.Module):
    """Predict one mask per class at input resolution, from the image embedding and the output of the first decoder.

    Args:
        dim: width of embeddings and tokens (256).
        num_mask_tokens: T, the number of classes with background.
        embedding_noise: standard deviation of the noise on the image embedding in training, relative to its range in
            the batch.
        class_balanced_attention: the paper's CMAttn instead of the constant of the release.
    """

    def __init__(
        self, dim: int, num_mask_tokens: int, embedding_noise: float = 0.2, class_balanced_attention: bool = False
    ) -> None:
        super().__init__()
        self.embedding_noise = embedding_noise
        self.transformer2 = TwoWayTransformer(dim, self_attention_first=False, cross_dim=dim, dropout=0.2)
        self.mask_tokens = nn.Embedding(num_mask_tokens, dim)
        self.output_upscaling = output_upscaling(dim)
        self.skip_connect = nn.Sequential(
            *(nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2), LayerNorm2d(dim // 8), nn.GELU()),
            *(nn.ConvTranspose2d(dim // 8, dim // 16, kernel_size=2, stride=2), LayerNorm2d(dim // 16), nn.GELU()),
        )
        self.output_hypernetworks_mlps2 = nn.ModuleList(MLP(dim, dim, dim // 16, 5) for _ in range(num_mask_tokens))
        self.iou_prediction_head = MLP(dim, 256, num_mask_tokens, 3)
        self.class_attention = ClassBalancedAttention(num_mask_tokens, dim // 4) if class_balanced_attention else None

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        dense_prompt_embeddings: Tensor,
        first: Decoded,
        label: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mask logits `[B, T, 16 G, 16 G]` of the second stage, and their predicted IoU `[B, T]`.

        Args:
            image_embeddings: `[B, dim, G, G]`.
            image_pe, dense_prompt_embeddings: `[1, dim, G, G]`; the latter is "no mask".
            first: output of the first decoder for the same images.
            label: `[B, 1, H, W]` class numbers, for the noise of `class_balanced_attention` in training.
        """
        prior = F.interpolate(first.masks, image_embeddings.shape[-2:], mode="bilinear", align_corners=False)
        prior = prior.softmax(1).flatten(2)  # [B, T, G * G]
        if self.training and self.embedding_noise:
            spread = image_embeddings.max() - image_embeddings.min()
            image_embeddings = image_embeddings + self.embedding_noise * spread * torch.randn_like(image_embeddings)
        image = image_embeddings + dense_prompt_embeddings
        attention = self.class_attention
        gate = 1 if attention is None else attention(first.mask_tokens, first.image_tokens, label)
        image = (1 + gate) * image
        tokens, keys = self.transformer2(image, image_pe, self.mask_tokens.weight[None], prior)
        upscaled = upscale(self.output_upscaling, keys.transpose(1, 2).reshape(image.shape), first.skips)
        pixels = self.skip_connect(torch.cat([upscaled, first.upscaled], 1))
        masks = hyper_masks(self.output_hypernetworks_mlps2, tokens, pixels)
        # there is no token for the IoU; H-SAM uses that of the background
        return masks, self.iou_prediction_head(tokens[:, 0])
