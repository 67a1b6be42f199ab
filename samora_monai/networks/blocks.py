"""Encoder blocks with experts, and what the image encoders of SAM and SAM 2 have in common.

Without experts, a block computes what SAM's or SAM 2's does. Each family derives its attention, block and encoder from
these classes (`image_encoder`, `sam2.hiera`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samora_monai.errors import InputError
from samora_monai.networks.experts import Expert, add_experts, branch_experts
from samora_monai.networks.hl_attn import HLAttn
from samora_monai.networks.windows import Windows


class Attention(nn.Module):
    """Multi-head attention within windows, with experts on queries and values.

    Args:
        dim, out_dim: width of the tokens, and of queries, keys and values.
        num_heads: number of heads.
        side: side of the windows, 0 for global attention (see `Windows`).
        experts, rank: names of the experts, and the rank of each.
    """

    def __init__(self, dim: int, out_dim: int, num_heads: int, side: int, experts: Sequence[str], rank: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.side = side
        self.qkv = nn.Linear(dim, 3 * out_dim)
        self.proj = nn.Linear(out_dim, out_dim)
        self.experts = nn.ModuleDict({name: Expert(dim, out_dim, rank) for name in experts})

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Normalised tokens `[N, dim]` in the order of `windows` -> `[N, out_dim]`, all experts in one branch."""
        q, k, v = self.qkv(x).chunk(3, -1)
        if len(self.experts):
            q, v = add_experts(self._experts(), x, q, v)
        return self.proj(self._attend(q, k, v, windows))

    def branches(self, x: Tensor, windows: Windows) -> tuple[Tensor, Iterator[Tensor]]:
        """Attention before its projection, of the base and of one expert after the other: each `[N, out_dim]`."""
        q, k, v = self.qkv(x).chunk(3, -1)
        experts = branch_experts(self._experts(), x, q, v)
        return self._attend(q, k, v, windows), (self._attend(own_q, k, own_v, windows) for own_q, own_v in experts)

    def merge_experts(self) -> None:
        """Add each expert to the base, `W_q += B_q A_q` and `W_v += B_v A_v`, and remove it."""
        q, _, v = self.qkv.weight.chunk(3)
        for expert in self._experts():
            delta_q, delta_v = expert.deltas()
            q += delta_q
            v += delta_v
        self.experts = nn.ModuleDict()

    def _experts(self) -> list[Expert]:
        return cast("list[Expert]", list(self.experts.values()))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows) -> Tensor:
        _, pad_k, pad_v = self.qkv.bias.chunk(3)  # the projection of a zero token
        return windows.attend(self._attention, q, k, v, self.num_heads, pad_k, pad_v)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attention of many windows, see `windows.Attention`."""
        return F.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """A transformer block: attention and MLP, each after a LayerNorm and around a residual.

    It runs on the tokens in the order of its windows, see `windows`.

    With a fusion, each expert has a branch, E_i is the difference between branch i and the base, and HL-Attn fuses the
    E_i into E:

    - `"attention"`: E_i = a_i - a, a the attention before its output projection; the MLP gets x + proj(a + E);
    - `"block"` (the paper's equation): each branch runs the MLP, E_i = y_i - y, and the block returns y + E.

    Args:
        dim, out_dim: width of the tokens before and after the block.
        attention, mlp: parts of the block.
        fusion: None (the deltas of the experts are added), `"attention"` or `"block"`.
        hl_attn: `order`, `width`, `start` and `norm` of `HLAttn`; not used without a fusion.
    """

    def __init__(
        self, dim: int, out_dim: int, attention: Attention, mlp: nn.Module, fusion: str | None, **hl_attn: Any
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(out_dim, eps=1e-6)
        self.mlp = mlp
        self.hl_attn = HLAttn(out_dim, attention.num_heads, **hl_attn) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, h, w, dim]` -> `[B, h, w, out_dim]`; half of h and w where the block pools."""
        windows = Windows(self.attn.side, (x.shape[0], x.shape[1], x.shape[2]))
        after = self._after(windows)
        x = windows.partition(x)
        normalised = self.norm1(x)
        x = self._shortcut(x, normalised, windows)
        if self.hl_attn is None:
            x = x + self.attn(normalised, windows)
            return after.restore(x + self.mlp(self.norm2(x)))
        base, experts = self.attn.branches(normalised, windows)
        if self.fusion == "attention":
            x = x + self.attn.proj(base + self._fuse(base, experts, after))
            return after.restore(x + self.mlp(self.norm2(x)))
        base, branches = (x + self.attn.proj(t) for t in (base, torch.stack(list(experts))))
        base, branches = (t + self.mlp(self.norm2(t)) for t in (base, branches))
        return after.restore(base + self._fuse(base, branches, after))

    def _after(self, windows: Windows) -> Windows:
        """The windows of the block's output."""
        return windows

    def _shortcut(self, x: Tensor, normalised: Tensor, windows: Windows) -> Tensor:
        """What the attention is added to."""
        return x

    def _fuse(self, base: Tensor, branches: Iterable[Tensor], windows: Windows) -> Tensor:
        """Fuse E_i, the difference between branch i and the base, into E; each is `[N, out_dim]`."""
        assert self.hl_attn is not None
        contributions = {name: t - base for name, t in zip(self.attn.experts, branches, strict=True)}
        return self.hl_attn(contributions, windows)


def fused_part(
    block: int, experts: Sequence[str], fusion: str | None, fusion_blocks: Collection[int] | None, order: Sequence[str]
) -> tuple[Sequence[str], str | None]:
    """The experts of a block and their fusion.

    Outside of `fusion_blocks` (None: all blocks) there is no HL-Attn, and the highest expert acts alone, as it does
    where HL-Attn adds nothing. The lower experts, whose tokens would enter HL-Attn of that block only, do not exist.
    """
    if fusion is None or fusion_blocks is None or block in fusion_blocks:
        return experts, fusion
    return order[-1:], None


class Features(NamedTuple):
    """Features of an image for the mask decoder."""

    embedding: Tensor  # [B, C, S/16, S/16]
    skips: tuple[Tensor, ...] = ()  # SAM 2: the finer maps, [B, C, S/4, S/4] and [B, C, S/8, S/8]


class Encoder(nn.Module, ABC):
    """An image encoder whose blocks have experts.

    Args:
        experts, rank, fusion: of the blocks, see `fused_part`.
        gradient_checkpointing: recompute the blocks in the backward pass, which saves memory.
    """

    embed_dim: int  # width of the tokens, of the first stage in Hiera
    num_heads: int  # likewise
    stages: tuple[int, ...]  # number of blocks in each stage, one stage in a ViT
    taps: tuple[int, ...]  # four blocks whose tokens the U-Net decoder of the pixel expert takes
    tap_widths: tuple[int, ...]  # width of the tokens after each of them
    tap_strides: tuple[int, ...]  # and side of such a token in pixels
    neck_inputs: tuple[int, ...]  # blocks whose tokens the neck takes
    distilled_width: int  # channels of `distilled`
    resized: tuple[str, ...]  # parameters whose shape depends on the size of the input

    def __init__(self, experts: Sequence[str], rank: int, fusion: str | None, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.experts = tuple(experts)
        self.rank = rank
        self.fusion = fusion
        self.gradient_checkpointing = gradient_checkpointing

    @abstractmethod
    def encoder_blocks(self) -> list[Block]:
        """The blocks, in order."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Tokens before the first block: `[B, 3, H, W]` normalised pixels -> `[B, h, w, embed_dim]`."""

    @abstractmethod
    def apply_neck(self, tokens: Sequence[Tensor]) -> Features:
        """Outputs of the blocks `neck_inputs`, each `[B, h, w, width]` -> features for the decoder."""

    @abstractmethod
    def distilled(self, x: Tensor) -> Tensor:
        """Features that are compared with a teacher's: `[B, 3, S, S]` -> `[B, distilled_width, S/16, S/16]`."""

    @abstractmethod
    def describe(self) -> str:
        """Kind and size in a few words."""

    def features(self, x: Tensor) -> Features:
        """Features of `[B, 3, S, S]` normalised pixels for the decoder."""
        return self.apply_neck(self.tokens(x, self.neck_inputs))

    def tokens(self, x: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tensor]:
        """Outputs of the given blocks, before the neck: `[B, 3, S, S]` -> for each block `[B, h, w, width]`.

        `blocks` are increasing indices; negative ones count from the end.
        """
        all_blocks = self.encoder_blocks()
        wanted = {i % len(all_blocks) for i in blocks}  # the blocks after the last of these do not run
        outputs = []
        x = self.embed(x)
        for i, block in enumerate(all_blocks[: max(wanted) + 1]):
            recompute = self.gradient_checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in wanted:
                outputs.append(x)
        return outputs

    @contextmanager
    def without_experts(self) -> Iterator[None]:
        """Remove the experts within the block, so that only the base is computed; for encoders without a fusion."""
        attentions = [block.attn for block in self.encoder_blocks()]
        experts = [attention.experts for attention in attentions]
        try:
            for attention in attentions:
                attention.experts = nn.ModuleDict()
            yield
        finally:
            for attention, own in zip(attentions, experts, strict=True):
                attention.experts = own

    @torch.no_grad()
    def merge_experts(self) -> None:
        """Merge the experts into the base weights and remove them: the same function at the cost of the base."""
        if self.fusion:
            raise InputError("experts that HL-Attn fuses cannot be merged into the base weights")
        for block in self.encoder_blocks():
            block.attn.merge_experts()
        self.experts = ()
