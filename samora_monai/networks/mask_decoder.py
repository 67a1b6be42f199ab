"""SAM's mask decoder, with as many mask tokens as the task needs.

SAM: https://arxiv.org/abs/2304.02643 (segment-anything, Apache-2.0); one mask token per class: SAMed,
https://arxiv.org/abs/2304.13785 (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samora_monai.networks.layers import MLP, LayerNorm2d
from samora_monai.networks.two_way_transformer import TwoWayTransformer


class MaskDecoder(nn.Module):
    """Predicts one mask per mask token.

    Args:
        dim: width of embeddings and tokens (256).
        num_mask_tokens: T; SAM has 4 (one single mask and three multi-masks), SAMed one per class with background.
        rank: rank of the experts in the transformer (SAMed_s), 0 for none.
    """

    def __init__(self, dim: int, num_mask_tokens: int, rank: int = 0) -> None:
        super().__init__()
        self.num_mask_tokens = num_mask_tokens
        self.transformer = TwoWayTransformer(depth=2, dim=dim, num_heads=8, mlp_dim=2048, rank=rank)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_mask_tokens))
        self.iou_prediction_head = MLP(dim, 256, num_mask_tokens, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """SAM's call: the single mask (token 0) or the multi-masks (tokens 1 and up) with their predicted IoU."""
        masks, iou = self.predict_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Masks of all tokens.

        Args:
            image_embeddings: ``[B, dim, G, G]``; one image may meet n prompts, one (empty) prompt may meet B images.
            image_pe: ``[1, dim, G, G]``.
            sparse_prompt_embeddings: ``[n, tokens, dim]``.
            dense_prompt_embeddings: ``[n, dim, G, G]``.

        Returns:
            mask logits ``[max(B, n), T, 4 G, 4 G]`` and predicted IoU ``[max(B, n), T]``.
        """
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = tokens.expand(len(sparse_prompt_embeddings), -1, -1)
        tokens = torch.cat([tokens, sparse_prompt_embeddings], 1)
        image = image_embeddings + dense_prompt_embeddings  # broadcasts one image over n prompts
        out, keys = self.transformer(image, image_pe, tokens)
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(image.shape))
        hyper = [mlp(out[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("btc,bchw->bthw", torch.stack(hyper, 1), upscaled)
        return masks, self.iou_prediction_head(out[:, 0])
