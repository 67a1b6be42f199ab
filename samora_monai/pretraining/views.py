"""Two views of one image, for contrastive learning."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose
from monai.utils import ensure_tuple


class TwoViewsd(Compose):
    """Apply random dictionary transforms to an item twice, and stack the results.

    Args:
        keys: keys of the tensors to stack: `[C, H, W]` -> `[2, C, h, w]`.
        transforms: random transforms, which are drawn anew for each view.
    """

    def __init__(self, keys: KeysCollection, transforms: Sequence[Any]) -> None:
        super().__init__(transforms)
        self.keys = ensure_tuple(keys)

    def __call__(self, input_: Mapping[Hashable, Any], *args: Any, **kwargs: Any) -> dict:  # type: ignore[override]
        """Return the item with both views under its keys; the other arguments are those of `Compose`."""
        views = [super(TwoViewsd, self).__call__(dict(input_), *args, **kwargs) for _ in range(2)]
        return dict(input_) | {key: torch.stack([view[key] for view in views]) for key in self.keys}
