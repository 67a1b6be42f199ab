"""The prompt encoder of SAM and SAM 2: embeddings of points, boxes, masks and of "no prompt".

Source: segment-anything (https://arxiv.org/abs/2304.02643) and sam2 (https://arxiv.org/abs/2408.00714), Apache-2.0.
Differs from SAM's code in: the positional encoding is exact under autocast and TF32.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from samora_monai.networks.layers import LayerNorm2d


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of points: `[sin, cos](2 pi (2 p - 1) M)`, x before y."""

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_pos_feats))

    def encode(self, points: Tensor) -> Tensor:
        """`[..., 2]` points (x, y) in [0, 1] -> `[..., 2 * num_pos_feats]`."""
        matrix = self.positional_encoding_gaussian_matrix
        points = 2 * points.to(matrix.dtype) - 1
        # no matmul: autocast and TF32 would round angles of up to 20 radians to 8 or 10 bits
        angles = 2 * math.pi * (points[..., :1] * matrix[0] + points[..., 1:] * matrix[1])
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, size: int) -> Tensor:
        """Encoding of the pixel centres of a `size x size` grid: `[2 * num_pos_feats, size, size]`."""
        matrix = self.positional_encoding_gaussian_matrix
        centre = (torch.arange(size, device=matrix.device, dtype=matrix.dtype) + 0.5) / size
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        return self.encode(torch.stack([x, y], -1)).permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Encode prompts for the mask decoder.

    Args:
        embed_dim, grid: width of the embeddings (256), and side G of the image embedding.
        image_size: side of the network's square input; points and boxes are in its pixels.
        num_point_embeddings: 4 in SAM, 11 in H-SAM, which uses none of them.
        corners_are_points: SAM 2's order: the corners of a box, the points, a padding point. SAM's is points, corners,
            and a padding point only without a box.
    """

    def __init__(
        self,
        embed_dim: int,
        grid: int,
        image_size: int,
        num_point_embeddings: int = 4,
        corners_are_points: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.corners_are_points = corners_are_points
        self.grid = grid
        self.image_size = image_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        # 0 background point, 1 foreground point, 2 and 3 the corners of a box
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(num_point_embeddings))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            *(nn.Conv2d(1, 4, kernel_size=2, stride=2), LayerNorm2d(4), nn.GELU()),
            *(nn.Conv2d(4, 16, kernel_size=2, stride=2), LayerNorm2d(16), nn.GELU()),
            nn.Conv2d(16, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """Positional encoding of the image embedding, `[1, embed_dim, G, G]`."""
        return self.pe_layer(self.grid)[None]

    def forward(
        self, points: tuple[Tensor, Tensor] | None = None, boxes: Tensor | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode n prompts, each any combination of points, boxes and masks.

        Args:
            points: coordinates `[n, p, 2]` (x, y) in pixels of the network's input, and labels `[n, p]`
                (1 foreground, 0 background, 2 and 3 the corners of a box, -1 ignored).
            boxes: `[n, 4]` (x1, y1, x2, y2) in pixels of the network's input.
            masks: logits `[n, 1, 4 G, 4 G]`.

        Returns:
            sparse `[n, tokens, embed_dim]` (no tokens without points and boxes) and dense `[n, embed_dim, G, G]`;
            n = 1 without prompts.
        """
        n = next((len(p) for p in (points[0] if points else None, boxes, masks) if p is not None), 1)
        sparse = [self.no_mask_embed.weight.new_empty(n, 0, self.no_mask_embed.embedding_dim)]
        if boxes is not None and self.corners_are_points:
            points, boxes = _with_corners(points, boxes), None
        if points is not None:
            sparse.append(self._embed_points(*points, pad=boxes is None))
        if boxes is not None:
            corners = self.pe_layer.encode((boxes.reshape(-1, 2, 2) + 0.5) / self.image_size)
            sparse.append(corners + torch.cat([self._label_embedding(2), self._label_embedding(3)]))
        if masks is not None:
            dense = self.mask_downscaling(masks)
        else:
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(n, -1, self.grid, self.grid)
        return torch.cat(sparse, 1), dense

    def _label_embedding(self, label: int) -> Tensor:
        return cast(nn.Embedding, self.point_embeddings[label]).weight

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        points = points + 0.5  # pixel centres
        if pad:  # SAM's decoder expects a padding point without a box
            points = torch.cat([points, points.new_zeros(len(points), 1, 2)], 1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), -1)], 1)
        embedding = self.pe_layer.encode(points / self.image_size)
        labels = labels[..., None]
        embedding = torch.where(labels == -1, self.not_a_point_embed.weight, embedding)
        for label in range(4):
            embedding = torch.where(labels == label, embedding + self._label_embedding(label), embedding)
        return embedding


def _with_corners(points: tuple[Tensor, Tensor] | None, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates and labels of the corners of boxes, with labels 2 and 3, before those of `points`."""
    corners = boxes.reshape(-1, 2, 2)
    labels = torch.tensor([2, 3], device=boxes.device).expand(len(corners), -1)
    if points is None:
        return corners, labels
    return torch.cat([corners, points[0].to(corners)], 1), torch.cat([labels, points[1].to(labels)], 1)
