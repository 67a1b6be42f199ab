"""Settings of the network's input: the slice axis of a scan, and the scaling of its grey values to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samora_monai.data.modality import check_known_modality
from samora_monai.errors import InputError
from samora_monai.settings import is_whole

INTENSITIES = ("percentiles", "volume_zscore", "slice_zscore")


@dataclass(frozen=True)
class ScanScaling:
    """Scaling of grey values, and slice axis; fields out of range raise an `InputError`.

    `models/model.json` holds these fields. A new one needs a default that reproduces models saved before it existed.

    Args:
        modality: `"CT"`: Hounsfield units, scaled by `window`; `"MR"`: arbitrary units, scaled as `intensity` says.
        window: lowest and highest HU, which become 0 and 1.
        percentiles: percentiles of an MR volume that become 0 and 1.
        slice_axis: axis of a RAS volume along which it is cut: 0 sagittal, 1 coronal, 2 axial.
        intensity: scaling of MR: `"percentiles"`; `"volume_zscore"` or `"slice_zscore"`: z-scores of the volume or of
            each slice, of which -3 and 3 become 0 and 1.
    """

    modality: str = "CT"
    window: tuple[float, float] = (-125, 275)
    percentiles: tuple[float, float] = (0.5, 99.5)
    slice_axis: int = 2
    intensity: str = "percentiles"

    def __post_init__(self) -> None:
        check_known_modality(self.modality)
        object.__setattr__(self, "window", _pair(self.window, "window", "[-125,275]", (-np.inf, np.inf)))
        object.__setattr__(self, "percentiles", _pair(self.percentiles, "percentiles", "[0.5,99.5]", (0, 100)))
        if not is_whole(self.slice_axis, 0) or self.slice_axis > 2:
            raise InputError(
                f"slice_axis must be 0 (sagittal), 1 (coronal) or 2 (axial), got {self.slice_axis!r}; "
                "leave it out for axial slices"
            )
        if self.intensity not in INTENSITIES:
            raise InputError(f"intensity must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}")


def _pair(values: Sequence[float], name: str, example: str, limits: tuple[float, float]) -> tuple[Any, Any]:
    pair = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    numbers = len(pair) == 2 and all(isinstance(value, int | float) for value in pair)
    if not numbers or not limits[0] <= pair[0] < pair[1] <= limits[1]:
        raise InputError(f'{name} must be two increasing numbers, got {values!r}; use for example --{name} "{example}"')
    return pair[0], pair[1]
