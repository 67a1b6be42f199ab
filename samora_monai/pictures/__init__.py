"""Pictures of segmentations and of what an expert learned. Imports matplotlib."""

from samora_monai.pictures.denoising import DenoisingPictures, FixedNoised
from samora_monai.pictures.expert import PickSlicesd, find_cases_to_show
from samora_monai.pictures.neighbours import NeighbourPictures
from samora_monai.pictures.tokens import TokenPictures, WithAndWithoutInferer

__all__ = [
    "DenoisingPictures",
    "FixedNoised",
    "NeighbourPictures",
    "PickSlicesd",
    "TokenPictures",
    "WithAndWithoutInferer",
    "find_cases_to_show",
]
