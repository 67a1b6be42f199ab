"""HL-Attn: hierarchical attention that fuses the experts of an encoder block (SAMora, ICCV 2025).

With E_i the contribution of expert i to the block (its branch minus the base branch), from the lowest level upwards:

    low = E_patch + CA(E_patch <- E_pixel)
    E   = E_image + CA(E_image <- low)
    CA(t <- s) = softmax((W_q n(t))(W_k n(s))^T / sqrt(d)) (W_v s) W_o        (multi-head)

n is the identity, or a LayerNorm without parameters (`norm`): the magnitudes of the contributions differ by level and
block, and with them the softmax is flat or saturated. The values stay raw.

Differs from the research release in:
- no trailing LayerNorm and no biases: contributions of zero are fused into zero with any weights;
- W_o starts at zero, so that fine-tuning starts from SAM with its highest expert instead of from noise;
- the width of the cross-attentions is an argument, because at full width HL-Attn is half as large as SAM.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from samora_monai.errors import InputError
from samora_monai.networks.windows import Windows


class CrossAttention(nn.Module):
    """CA(target <- source) within the windows of the block."""

    def __init__(self, dim: int, num_heads: int, width: int, start: str = "zero", norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm
        self.q = nn.Linear(dim, width, bias=False)
        self.kv = nn.Linear(dim, 2 * width, bias=False)
        self.proj = nn.Linear(width, dim, bias=False)
        if start == "zero":
            nn.init.zeros_(self.proj.weight)

    def forward(self, target: Tensor, source: Tensor, windows: Windows) -> Tensor:
        """target, source: `[N, dim]`, tokens in the order of `windows` -> `[N, dim]`."""
        if self.norm:
            w_k, w_v = self.kv.weight.chunk(2)
            target, like = (F.layer_norm(t, t.shape[-1:]) for t in (target, source))
            k, v = F.linear(like, w_k), F.linear(source, w_v)
        else:
            k, v = self.kv(source).chunk(2, -1)
        pad = k.new_zeros(k.shape[-1])
        return self.proj(windows.attend(self._attend, self.q(target), k, v, self.num_heads, pad, pad))

    @staticmethod
    def _attend(q: Tensor, k: Tensor, v: Tensor, _: tuple[int, int]) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def inner_heads(width: int, dim: int, num_heads: int) -> int:
    """Heads of a cross-attention of inner width `width`: as wide as those of the block, at least one."""
    return max(1, width * num_heads // dim)


class HLAttn(nn.Module):
    """Fuse the contributions of L experts into one, from the lowest level upwards.

    Args:
        dim, num_heads: of the block; the cross-attentions have heads of the same width.
        order: names of the experts from the lowest to the highest level.
        width: inner width of the cross-attentions; None is `dim`, as in the paper.
        start: initial values of W_o: `"zero"` or `"random"`.
        norm: n is a LayerNorm.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        order: tuple[str, ...],
        width: int | None = None,
        start: str = "zero",
        norm: bool = False,
    ) -> None:
        super().__init__()
        width = width or dim
        heads = inner_heads(width, dim, num_heads)
        if width % heads:
            raise InputError(f"fusion_width {width} is not a multiple of its {heads} heads; choose dim, dim/2 or dim/4")
        self.order = order
        self.cross = nn.ModuleDict({name: CrossAttention(dim, heads, width, start, norm) for name in order[1:]})

    def forward(self, contributions: dict[str, Tensor], windows: Windows) -> Tensor:
        """contributions: `[N, dim]`, in the order of `windows`, for each name of `order` -> `[N, dim]`."""
        low = contributions[self.order[0]]
        for name, cross in self.cross.items():
            low = contributions[name] + cross(contributions[name], low, windows)
        return low
