"""What is done with the predictions of a network on the slices of a scan: settings of a model."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from samora_monai.errors import InputError
from samora_monai.settings import is_whole


@dataclass(frozen=True)
class Postprocessing:
    """Postprocessing of a predicted scan.

    Args:
        smoothing: standard deviation in mm of the Gaussian that averages the class probabilities of neighbouring
            slices; 0 leaves each slice as the network segments it. Thick slices are averaged with little weight: 1.5 mm
            give the next slice at a distance of 0.6 mm a weight of 0.92, at 5 mm one of 0.004.
        largest_component: classes that are one organ in one piece; of each only the largest connected component is
            kept, the others become background.

    Raises:
        InputError: a setting is out of range.
    """

    smoothing: float = 0.0
    largest_component: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        number = isinstance(self.smoothing, Real) and not isinstance(self.smoothing, bool)
        if not number or not 0 <= self.smoothing < float("inf"):
            raise InputError(f"smoothing must be 0 or a number of mm above it, got {self.smoothing!r}; give 1.5")
        classes = self.largest_component
        if not isinstance(classes, list | tuple) or not all(is_whole(number, 1) for number in classes):
            raise InputError(f"largest_component must be a list of class numbers, e.g. [1, 2], got {classes!r}")
        object.__setattr__(self, "largest_component", tuple(sorted(set(classes))))
