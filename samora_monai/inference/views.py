"""Test-time augmentation: average the class probabilities of a slice over views of it.

The views are those that the training augments with, at about half of its range, which is 0.35 radians and 15 % of the
square of the network's input. The training flips nothing, so no view is flipped. benchmarks/README.md has what views
gain. MONAI's `TestTimeAugmentation` draws random transforms of a data set; these views are fixed, so that a label is
the same each time, and are made on the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

ANGLE, SCALE = 0.15, 1.08  # radians; fraction of the side
_ROTATION = torch.linalg.matrix_exp(torch.tensor([[0.0, -ANGLE], [ANGLE, 0.0]]))
VIEWS = (SCALE * _ROTATION, _ROTATION.T / SCALE)  # beside the slice itself; the second is the inverse of the first


def averaged(slices: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Segment slices `[b, C, X, Y]` in all views.

    Args:
        network: returns logits `[b, K, X, Y]`.

    Returns:
        logits `[b, K, X, Y]`, float32, whose softmax is the mean of the probabilities of the views that show the pixel.
    """
    total = network(slices).float().softmax(1)
    for view in VIEWS:
        probabilities = network(_moved(slices, view)).float().softmax(1)
        total = total + _moved(probabilities, torch.linalg.inv(view))
    return total.log()


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """Sample `[b, C, X, Y]` at the places that a matrix moves the centred square to; 0 outside."""
    theta = torch.cat([matrix, torch.zeros(2, 1)], 1).to(x).expand(len(x), 2, 3)
    return grid_sample(x, affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
