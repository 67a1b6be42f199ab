"""A weak and a strong view of a slice without a label, of the transforms that augment labelled slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from monai.transforms import Compose
from monai.utils import CommonKeys as Keys

WEAK = "weak"


class TwoViews(Compose):
    """Both views are moved alike by the transforms that also move labels; the others change the strong one only.

    A pseudo-label of the weak view is thus one of the strong view, pixel by pixel.

    Args:
        transforms: random dictionary transforms of labelled slices, which are copied; those with the key `label` are
            the ones that move pixels, and come first.
    """

    def __init__(self, transforms: Sequence[Callable]) -> None:
        copies: list[Any] = [deepcopy(transform) for transform in transforms]
        moving = [transform for transform in copies if Keys.LABEL in getattr(transform, "keys", ())]
        for transform in moving:
            transform.allow_missing_keys = True
        super().__init__([*moving, *(transform for transform in copies if transform not in moving)])
        self.num_moving = len(moving)

    def __call__(self, input_: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """`{"image": [C, S, S]}` -> the strong view as `image` and the weak one as `weak`."""
        moved = super().__call__(input_, end=self.num_moving)
        strong = super().__call__(moved, start=self.num_moving)
        return {Keys.IMAGE: strong[Keys.IMAGE], WEAK: moved[Keys.IMAGE]}
