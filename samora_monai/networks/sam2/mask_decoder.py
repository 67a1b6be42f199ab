"""SAM 2's mask decoder with any number of mask tokens.

SAM 2: https://arxiv.org/abs/2408.00714 (facebookresearch/sam2, Apache-2.0). Beside SAM's decoder it has a token for
"is the object visible", predicts IoU after a sigmoid, and adds the encoder's finer maps while it upscales.
Differs from SAM 2's code in:
- `conv_s0` and `conv_s1` are applied by the module that holds them, not by its caller;
- the object's visibility, which only video uses, does not change a mask; `pred_obj_score_head` predicts its logit from
  `Decoded.first_tokens[:, 0]`;
- a single mask is always that of token 0, never one of the others because it is more stable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from samora_monai.networks.layers import MLP
from samora_monai.networks.mask_decoder import MaskDecoder
from samora_monai.networks.two_way_transformer import TwoWayTransformer


class Sam2MaskDecoder(MaskDecoder):
    """Predict one mask per mask token, from embeddings of three resolutions.

    Args:
        dim, num_mask_tokens, rank, self_attention_first: see `MaskDecoder`.
    """

    def __init__(self, dim: int, num_mask_tokens: int, rank: int = 0, self_attention_first: bool = True) -> None:
        super().__init__(dim, num_mask_tokens, rank, self_attention_first)
        self.obj_score_token = nn.Embedding(1, dim)
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    @staticmethod
    def _transformer(dim: int, rank: int, self_attention_first: bool) -> TwoWayTransformer:
        return TwoWayTransformer(dim, rank, self_attention_first, mlp=lambda dim: MLP(dim, 8 * dim, dim, 2))

    def _first_tokens(self) -> list[Tensor]:
        return [self.obj_score_token.weight, self.iou_token.weight]

    def _project(self, skips: Sequence[Tensor]) -> tuple[Tensor, ...]:
        fine, middle = skips
        return self.conv_s1(middle), self.conv_s0(fine)

    def _iou(self, token: Tensor) -> Tensor:
        return self.iou_prediction_head(token).sigmoid()
