"""The two-way transformer of SAM and SAM 2: prompt and mask tokens attend to the image, and the image attends to them.

Source: segment-anything (https://arxiv.org/abs/2304.02643), Apache-2.0.
Differs from SAM's code in: fused attention kernels; optional experts on the q and v projections (SAMed_s); these are
arguments: the order of a block and a prior on its cross-attentions (H-SAM, https://arxiv.org/abs/2403.18271), and the
MLP, whose parameters have other names in SAM 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.networks.experts import Expert
from samora_monai.networks.layers import MLPBlock

DEPTH, NUM_HEADS, MLP_DIM = 2, 8, 2048  # of every two-way transformer in SAM, SAM 2 and H-SAM


def sam_mlp(dim: int) -> nn.Module:
    """MLP of a block of SAM's transformer."""
    return MLPBlock(dim, MLP_DIM, nn.ReLU)


class TokenAttention(nn.Module):
    """Attention between two sets of tokens; in SAM the inner width of the cross-attentions is half the token width.

    Args:
        dim, inner_dim, num_heads: width of the tokens, inner width, and number of heads.
        rank: rank of the expert on q and v, 0 for none.
    """

    def __init__(self, dim: int, inner_dim: int, num_heads: int, rank: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)
        self.expert = Expert(dim, inner_dim, rank) if rank else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, prior: Tensor | None = None) -> Tensor:
        """q: `[B or 1, n, dim]`; k, v: `[B or 1, m, dim]` -> `[B, n, dim]`.

        `prior` `[B, n, m]` multiplies the attention weights after the softmax, without renormalisation.
        """
        query, value = self.q_proj(q), self.v_proj(v)
        if self.expert is not None:
            query = query + self.expert.linear_b_q(self.expert.linear_a_q(q))
            value = value + self.expert.linear_b_v(self.expert.linear_a_v(v))
        heads = [t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, self.k_proj(k), value)]
        batch = max(t.shape[0] for t in heads)  # tokens without prompts have batch size 1
        query, key, value = (t.expand(batch, -1, -1, -1) for t in heads)
        if prior is None:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
            out = weights * prior[:, None] @ value
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP on the tokens, image to tokens; see `TwoWayTransformer`."""

    def __init__(
        self,
        dim: int,
        first: bool,
        rank: int,
        self_attention_first: bool,
        cross_dim: int,
        dropout: float,
        mlp: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.first = first
        self.self_attention_first = self_attention_first
        self.self_attn = TokenAttention(dim, dim, NUM_HEADS, rank)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, cross_dim, NUM_HEADS, rank)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, cross_dim, NUM_HEADS, rank)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.self_attention_first:
            queries = self._attend_to_tokens(queries, query_pe)
        attended = self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys, prior)
        queries = self.norm2(queries + self.dropout(attended))
        if not self.self_attention_first:
            queries = self._attend_to_tokens(queries, query_pe)
        queries = self.norm3(queries + self.mlp(queries))
        prior = None if prior is None else prior.transpose(1, 2)
        attended = self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries, prior)
        return queries, self.norm4(keys + attended)

    def _attend_to_tokens(self, queries: Tensor, query_pe: Tensor) -> Tensor:
        if self.first:  # as in SAM: no positional encoding (the queries are the encoding) and no residual
            return self.norm1(self.self_attn(queries, queries, queries))
        q = queries + query_pe
        return self.norm1(queries + self.self_attn(q, q, queries))


class TwoWayTransformer(nn.Module):
    """A stack of two-way blocks, and a final attention of the tokens to the image.

    Args:
        dim: width of the tokens.
        rank: rank of the experts on q and v of all attentions, 0 for none.
        self_attention_first: SAM's order; in H-SAM the tokens attend to the image before they attend to each other.
        cross_dim: inner width of the cross-attentions in the blocks; None is `dim / 2`, as in SAM.
        dropout: on the output of the token-to-image attention in the blocks.
        mlp: makes the MLP of a block from `dim`.
    """

    def __init__(
        self,
        dim: int,
        rank: int = 0,
        self_attention_first: bool = True,
        cross_dim: int | None = None,
        dropout: float = 0,
        mlp: Callable[[int], nn.Module] = sam_mlp,
    ) -> None:
        super().__init__()
        options = (rank, self_attention_first, cross_dim or dim // 2, dropout, mlp)
        self.layers = nn.ModuleList(TwoWayAttentionBlock(dim, i == 0, *options) for i in range(DEPTH))
        self.final_attn_token_to_image = TokenAttention(dim, dim // 2, NUM_HEADS, rank)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the updated tokens `[B, n, dim]` and image tokens `[B, G * G, dim]`.

        Args:
            image_embedding, image_pe: `[B, dim, G, G]` and `[1 or B, dim, G, G]`.
            point_embedding: tokens `[B or 1, n, dim]`, which are also their positional encoding.
            prior: `[B, n, G * G]`, multiplies the weights of the cross-attentions in the blocks, in both directions.
        """
        keys = image_embedding.flatten(2).transpose(1, 2)
        key_pe = image_pe.flatten(2).transpose(1, 2)
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, point_embedding, key_pe, prior)
        attended = self.final_attn_token_to_image(queries + point_embedding, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys
