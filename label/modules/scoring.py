"""What Next Sample needs to know of the scans, computed in the background: features, and the model's uncertainty."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from monai.data import MetaTensor
from scoring_store import Store, file_key

from samora_monai.checkpoints import load_model, load_sam, read_model_settings
from samora_monai.data import LoadUnlabeledd, ScaleUnlabeledd, ScanScaling
from samora_monai.data.modality import suggested_modality
from samora_monai.errors import InputError, one_line
from samora_monai.inference.uncertainty import entropy
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.pipeline.at_hand import Base
from samora_monai.selection import Anatomy, scan_features

IMAGE_SIZE = 224  # of the features' network, as for `samora select`

logger = logging.getLogger("samora_scoring")


class Background:
    """Compute what the store lacks.

    Args:
        store: where it is kept.
        base: the base whose encoder computes the features.
        model: the served `model.pt`; None if there is none.
        path_of: the file of an image; it may be fetched first.
    """

    def __init__(self, store: Store, base: Base, model: Path | None, path_of: Callable[[str], str]) -> None:
        self.store, self.base, self.model, self.path_of = store, base, model, path_of

    @property
    def model_key(self) -> str:
        return file_key(self.model) if self.model else ""

    def features(self, images: Iterable[str]) -> dict[str, int]:
        """Compute the features of the images that have none; return how many were computed and could not be."""
        net: Segmenter | None = None
        scaling, computed, failed = self._scaling(), 0, 0
        for image in images:
            if self.store.has_features(image):
                continue
            if net is None:
                net = build_segmenter(self.base.encoder, IMAGE_SIZE, num_classes=2, experts=()).eval()
                load_sam(net, self.base.checkpoint)
            if (volume := self._read(image, scaling)) is None:
                failed += 1
                continue
            self.store.write_features(image, scan_features(volume, net).cells, Anatomy(volume))
            computed += 1
        return {"computed": computed, "failed": failed}

    def uncertainty(self, images: Iterable[str]) -> dict[str, int]:
        """Score the images that the served model has not scored; a model that is trained meanwhile starts anew."""
        if self.model is None or not self.model.is_file():
            return {"computed": 0, "failed": 0}
        model, computed, failed = self.model_key, 0, 0
        scores = dict(self.store.scores(model))
        net: Segmenter | None = None
        settings, scaling = read_model_settings(self.model), self._scaling()
        for image in images:
            if image in scores:
                continue
            if net is None:
                net = build_segmenter(settings.network).eval()
                load_model(net, self.model)
            if (volume := self._read(image, scaling)) is None:
                failed += 1
                continue
            scores[image] = round(entropy(volume.as_tensor(), net, context=settings.network.context), 6)
            computed += 1
            self.store.write_scores(model, scores)
        return {"computed": computed, "failed": failed}

    def lacks(self, images: Iterable[str]) -> bool:
        """Whether anything is left to compute; images that could not be read count as computed."""
        scores = self.store.scores(self.model_key)
        wanted = [image for image in images if not self.store.has_failed(image)]
        served = self.model is not None and self.model.is_file()
        return any(not self.store.has_features(image) or (served and image not in scores) for image in wanted)

    def _scaling(self) -> ScanScaling | None:
        """That of the served model; None without one."""
        return read_model_settings(self.model).scaling if self.model is not None and self.model.is_file() else None

    def _read(self, image: str, scaling: ScanScaling | None) -> MetaTensor | None:
        """The scan, or None with a line in the log if it cannot be read."""
        key = ""
        try:
            path = self.path_of(image)
            key = file_key(path)
            if self.store.failed(image, key):
                return None
            volume = LoadUnlabeledd(slice_axis=scaling.slice_axis if scaling else 2)({"image": path})["image"]
            if scaling is None:
                scaling = ScanScaling(suggested_modality("MR", float(volume.min())) or "MR")
            return ScaleUnlabeledd("image", scaling)({"image": volume})["image"]
        except (InputError, OSError, RuntimeError, torch.OutOfMemoryError) as error:
            reason = one_line(error)
            logger.warning("next sample: image '%s' is left out: %s", image, reason)
            self.store.write_failure(image, key, reason)
            return None
