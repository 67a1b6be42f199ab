"""Pictures of the pixel expert: slices clean, noisy, and denoised by encoder and decoder."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import Any

import torch
from monai.config import KeysCollection
from monai.metrics import PSNRMetric, SSIMMetric
from monai.transforms import MapTransform
from monai.utils import CommonKeys as Keys
from torch import Tensor

from samora_monai.errors import InputError
from samora_monai.pictures.expert import ExpertPictures, upright
from samora_monai.pictures.panels import Panel


class FixedNoised(MapTransform):
    """Add Gaussian noise, the same in every run and for all tensors of one shape.

    Args:
        keys: keys of tensors.
        sigma: standard deviation of the noise.

    Raises:
        InputError: `sigma` is not a positive number.
    """

    def __init__(self, keys: KeysCollection, sigma: float) -> None:
        super().__init__(keys)
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not sigma > 0:
            raise InputError(f"noise must be above 0, on images in [0, 1], got {sigma!r}; use for example --noise 0.1")
        self.sigma = sigma

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Values in [0, 1] -> the same shape, not clipped."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = d[key] + self.sigma * torch.randn(d[key].shape, generator=torch.Generator().manual_seed(0))
        return d


def likeness(pictures: Tensor, clean: Tensor) -> tuple[list[float], list[float]]:
    """PSNR, in dB, and SSIM of each picture, clipped to [0, 1] as it is shown.

    Args:
        pictures, clean: `[K, 1, H, W]`.
    """
    shown = pictures.clamp(0, 1)
    psnr = PSNRMetric(max_val=1.0)(y_pred=shown, y=clean)
    ssim = SSIMMetric(spatial_dims=2)(y_pred=shown, y=clean)
    return psnr.flatten().tolist(), ssim.flatten().tolist()  # type: ignore[union-attr]


class DenoisingPictures(ExpertPictures):
    """Handler that draws three slices of a case, each clean, noisy and denoised.

    The evaluator's output holds the noisy image, the clean label and the denoised prediction, each `[1, X, Y, K]`.
    """

    def draw(self, case: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Draw a row for each slice, and log the means of PSNR and SSIM over the slices."""
        noisy, clean, denoised = (output[key].movedim(-1, 0).cpu() for key in (Keys.IMAGE, Keys.LABEL, Keys.PRED))
        scores = [likeness(pictures, clean) for pictures in (noisy, denoised)]
        extent = tuple(case["extent"].tolist())
        rows = []
        for k, index in enumerate(case["slices"].tolist()):
            row = [Panel(upright(clean[k, 0]), f"slice {index}\nclean" if len(clean) > 1 else "clean", extent)]
            for name, pictures, (psnr, ssim) in zip(("noisy", "denoised"), (noisy, denoised), scores, strict=True):
                title = f"{name}\nPSNR {psnr[k]:.1f} dB   SSIM {ssim[k]:.3f}"
                row.append(Panel(upright(pictures[k, 0]), title, extent))
            rows.append(row)
        (psnr_before, ssim_before), (psnr_after, ssim_after) = ([fmean(values) for values in score] for score in scores)
        result = f"PSNR {psnr_before:.1f} -> {psnr_after:.1f} dB, SSIM {ssim_before:.3f} -> {ssim_after:.3f}"
        self.save(case["case"], case["path"], rows, "denoised through the pixel expert", result)
