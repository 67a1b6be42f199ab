"""H-SAM's second decoder: it decodes again, guided by the masks of the first, up to the resolution of the input.

H-SAM (https://arxiv.org/abs/2403.18271, MIT), on top of SAM's mask decoder (Apache-2.0). With e the image embedding, n
its dense prompt ("no mask") and m the first decoder's logits:

    prior = softmax_classes(m reduced to the grid of e)
    src = 2 (e + noise + n)                           noise in training only; or (1 + A)(e + noise + n), see below
    softmax(Q K^T / sqrt(d)) * prior                  learnable mask cross-attention, tokens to image and back
    features = up(up([decoder 2's, decoder 1's]))     hierarchical pixel decoder: 4 G -> 16 G, the side of the input

The first decoder is SAM's with another order of its blocks (`MaskDecoder(self_attention_first=False)`).

Differs from H-SAM's code in:
- one decoder for every grid and number of classes, where H-SAM has a copy for 224 and one for 512;
- CMAttn of the release always gives exactly "twice the embedding"; here that is all there is of it, without the weights
  that never matter (`class_balanced_attention` is the paper's, working);
- no rule that attention rows become zero whose logits happen to sum to exactly the number of keys: whether rounding
  meets that number differs between devices and precisions, and no result should hang on it;
- LayerNorms that H-SAM registers in its cross-attentions and never calls are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.class_balanced_attention import ClassBalancedAttention
from samora_monai.networks.layers import MLP, LayerNorm2d
from samora_monai.networks.mask_decoder import Decoded, hyper_masks, output_upscaling
from samora_monai.networks.two_way_transformer import TwoWayTransformer


class HierarchicalDecoder(nn.Module):
    """Predicts one mask per class at the side of the input, from the image embedding and the first decoder's result.

    Args:
        dim: width of embeddings and tokens (256).
        num_mask_tokens: T, one per class with background.
        embedding_noise: deviation of the noise on the image embedding in training, relative to its range in the batch.
        class_balanced_attention: the paper's CMAttn instead of the release's constant.
    """

    def __init__(
        self, dim: int, num_mask_tokens: int, embedding_noise: float = 0.2, class_balanced_attention: bool = False
    ) -> None:
        super().__init__()
        self.embedding_noise = embedding_noise
        self.transformer2 = TwoWayTransformer(2, dim, 8, 2048, self_attention_first=False, cross_dim=dim, dropout=0.2)
        self.mask_tokens = nn.Embedding(num_mask_tokens, dim)
        self.output_upscaling = output_upscaling(dim)
        self.skip_connect = nn.Sequential(
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            LayerNorm2d(dim // 8),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 8, dim // 16, kernel_size=2, stride=2),
            LayerNorm2d(dim // 16),
            nn.GELU(),
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
        """Masks of the second stage.

        Args:
            image_embeddings: `[B, dim, G, G]`.
            image_pe: `[1, dim, G, G]`.
            dense_prompt_embeddings: `[1, dim, G, G]`, "no mask".
            first: what the first decoder made of the same images.
            label: `[B, 1, H, W]` class numbers, for the noise of `class_balanced_attention` in training.

        Returns:
            mask logits `[B, T, 16 G, 16 G]` and predicted IoU `[B, T]`.
        """
        prior = F.interpolate(first.masks, image_embeddings.shape[-2:], mode="bilinear", align_corners=False)
        prior = prior.softmax(1).flatten(2)  # [B, T, G * G]
        if self.training and self.embedding_noise:
            spread = image_embeddings.max() - image_embeddings.min()
            noise = torch.randn_like(image_embeddings)
            image_embeddings = image_embeddings + self.embedding_noise * spread * noise
        image = image_embeddings + dense_prompt_embeddings
        if self.class_attention is None:
            image = 2 * image
        else:
            image = image * (1 + self.class_attention(first.mask_tokens, first.image_tokens, label))
        tokens, keys = self.transformer2(image, image_pe, self.mask_tokens.weight[None], prior)
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(image.shape))
        pixels = self.skip_connect(torch.cat([upscaled, first.upscaled], 1))
        masks = hyper_masks(self.output_hypernetworks_mlps2, tokens, pixels)
        return masks, self.iou_prediction_head(
            tokens[:, 0]
        )  # there is no token for the IoU: H-SAM takes the background's
