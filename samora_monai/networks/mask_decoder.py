"""SAM's mask decoder with any number of mask tokens.

SAM: https://arxiv.org/abs/2304.02643 (segment-anything, Apache-2.0); one mask token per class: SAMed,
https://arxiv.org/abs/2304.13785 (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from samora_monai.networks.layers import MLP, LayerNorm2d
from samora_monai.networks.two_way_transformer import TwoWayTransformer


class Decoded(NamedTuple):
    """Masks of a mask decoder, and the features that a second stage needs."""

    masks: Tensor  # [B, T, 4 G, 4 G] logits
    first_tokens: Tensor  # [B, 1, dim]: predicted IoU; SAM 2: [B, 2, dim]: the object's visibility, predicted IoU
    mask_tokens: Tensor  # [B, T, dim]
    image_tokens: Tensor  # [B, G * G, dim]
    upscaled: Tensor  # [B, dim / 8, 4 G, 4 G]
    skips: tuple[Tensor, ...]  # SAM 2: what its encoder adds to the upscaling, see `upscale`

    @property
    def quality_token(self) -> Tensor:
        """The token of the predicted IoU, `[B, dim]`."""
        return self.first_tokens[:, -1]


def output_upscaling(dim: int) -> nn.Sequential:
    """SAM's pixel decoder: `[B, dim, G, G]` -> `[B, dim / 8, 4 G, 4 G]`."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
        nn.GELU(),
    )


def upscale(layers: nn.Sequential, image: Tensor, skips: Sequence[Tensor]) -> Tensor:
    """Apply `output_upscaling`, and add finer maps of the encoder (SAM 2).

    Args:
        layers, image: see `output_upscaling`.
        skips: none, or maps `[B, dim / 4, 2 G, 2 G]` and `[B, dim / 8, 4 G, 4 G]`.
    """
    if not skips:
        return layers(image)
    deconvolve1, norm, act1, deconvolve2, act2 = layers
    image = act1(norm(deconvolve1(image) + skips[0]))
    return act2(deconvolve2(image) + skips[1])


def hyper_masks(hypernetworks: nn.ModuleList, mask_tokens: Tensor, pixels: Tensor) -> Tensor:
    """Mask logits: `[B, T, dim]` and `[B, c, h, w]` -> `[B, T, h, w]`.

    Hypernetwork t turns token t into the channel weights of mask t. All T have equal shapes, so that each of their
    layers is one batched product.
    """
    weights = mask_tokens.transpose(0, 1)  # [T, B, dim]
    layers = list(zip(*(cast(MLP, network).layers for network in hypernetworks), strict=True))
    for i, linears in enumerate(layers):
        bias = torch.stack([linear.bias for linear in linears])[:, None]
        matrix = torch.stack([linear.weight for linear in linears]).transpose(1, 2)
        weights = torch.baddbmm(bias, weights.relu() if i else weights, matrix)
    return torch.einsum("tbc,bchw->bthw", weights, pixels)


class MaskDecoder(nn.Module):
    """Predict one mask per mask token.

    Args:
        dim: width of embeddings and tokens (256).
        num_mask_tokens: T; SAM has 4 (a single mask and three multi-masks), SAMed one per class with background.
        rank: rank of the experts in the transformer (SAMed_s), 0 for none.
        self_attention_first: order within the transformer's blocks: true SAM's, false H-SAM's.
    """

    def __init__(self, dim: int, num_mask_tokens: int, rank: int = 0, self_attention_first: bool = True) -> None:
        super().__init__()
        self.num_mask_tokens = num_mask_tokens
        self.transformer = self._transformer(dim, rank, self_attention_first)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_mask_tokens, dim)
        self.output_upscaling = output_upscaling(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_mask_tokens))
        self.iou_prediction_head = MLP(dim, 256, num_mask_tokens, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        skips: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """As in SAM: the single mask (token 0) or the multi-masks (tokens 1 and up), with their predicted IoU."""
        embeddings = (image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        masks, iou = self.predict_masks(*embeddings, skips)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        skips: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """As in SAM, with the arguments of `decode`: masks of all tokens `[B, T, 4 G, 4 G]` and their predicted IoU."""
        embeddings = (image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        decoded = self.decode(*embeddings, skips)
        return decoded.masks, self._iou(decoded.quality_token)

    def decode(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        skips: Sequence[Tensor] = (),
    ) -> Decoded:
        """Predict the masks of all tokens, and return the features that they are computed from.

        Args:
            image_embeddings, image_pe: `[B, dim, G, G]`, B = 1 or n = 1, and `[1, dim, G, G]`.
            sparse_prompt_embeddings, dense_prompt_embeddings: `[n, tokens, dim]` and `[n, dim, G, G]`.
            skips: finer maps of the encoder, see `Features`.
        """
        first = self._first_tokens()
        tokens = torch.cat([*first, self.mask_tokens.weight]).expand(len(sparse_prompt_embeddings), -1, -1)
        tokens = torch.cat([tokens, sparse_prompt_embeddings], 1)
        image = image_embeddings + dense_prompt_embeddings  # broadcasts one image over n prompts
        out, keys = self.transformer(image, image_pe, tokens)
        own_skips = self._project(skips)
        upscaled = upscale(self.output_upscaling, keys.transpose(1, 2).reshape(image.shape), own_skips)
        mask_tokens = out[:, len(first) : len(first) + self.num_mask_tokens]
        masks = hyper_masks(self.output_hypernetworks_mlps, mask_tokens, upscaled)
        return Decoded(masks, out[:, : len(first)], mask_tokens, keys, upscaled, own_skips)

    @staticmethod
    def _transformer(dim: int, rank: int, self_attention_first: bool) -> TwoWayTransformer:
        return TwoWayTransformer(dim, rank, self_attention_first)

    def _first_tokens(self) -> list[Tensor]:
        """The tokens before the mask tokens; the last of them is that of the predicted IoU."""
        return [self.iou_token.weight]

    def _project(self, skips: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the encoder -> what `upscale` adds; none in SAM."""
        return ()

    def _iou(self, token: Tensor) -> Tensor:
        """`[B, dim]` -> `[B, T]`."""
        return self.iou_prediction_head(token)
