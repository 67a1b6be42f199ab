"""What the server adds to MONAI Label's sample app: interactive models, strategies for Next Sample, their scores."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clicks import NAME, NAME_3D, ClickTask, Promptable, Scans
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from scoring import Background
from scoring_store import Store, file_key
from strategies import DESCRIPTIONS, Chooser

from samora_monai.checkpoints import ModelSettings, read_model_settings
from samora_monai.errors import InputError
from samora_monai.pipeline.at_hand import Base, find_base

BUNDLE = "samora_segmentation"

logger = logging.getLogger("samora_app")


class ChosenStrategy(Strategy):
    """One of the strategies of `Chooser`, as MONAI Label calls them."""

    def __init__(self, name: str, chooser: Chooser) -> None:
        super().__init__(DESCRIPTIONS[name])
        self.name, self.chooser = name, chooser

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        image = self.chooser(self.name, datastore)
        return {"id": image} if image else None


class Features(ScoringMethod):
    """The features of the scans that have none."""

    def __init__(self, background: Background) -> None:
        super().__init__("features of the scans, for the strategy `representative`")
        self.background = background

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, int]:
        return self.background.features(sorted(datastore.list_images()))


class Uncertainty(ScoringMethod):
    """The uncertainty of the served model on the scans without a label."""

    def __init__(self, background: Background) -> None:
        super().__init__("mean entropy of the classes, for the strategy `uncertain`")
        self.background = background

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, int]:
        return self.background.uncertainty(sorted(datastore.get_unlabeled_images()))


class Additions:
    """A mixin for `MyApp`, MONAI Label's app for bundles.

    Settings (`--conf`): `base`, the file of the base for clicks and features; `labels`, names of the objects where no
    model is served, separated by commas.
    """

    @cached_property
    def served_file(self) -> Path | None:
        """The served `model.pt`; None if the project has no model yet."""
        file = Path(self.app_dir, "model", BUNDLE, "models", "model.pt")
        return file if BUNDLE in self.models and file.is_file() else None

    @cached_property
    def model_settings(self) -> ModelSettings | None:
        return read_model_settings(self.served_file) if self.served_file else None

    @cached_property
    def objects(self) -> list[str]:
        """Names of the objects in the order of their values: the model's classes, else those of `labels`."""
        names = self.model_settings.class_names[1:] if self.model_settings else None
        return [name.strip().lower() for name in names or (self.conf.get("labels") or "object").split(",")]

    @cached_property
    def base(self) -> Base | None:
        """The base of the served model, or the best at hand; None, with a line in the log, if there is none."""
        encoder = self.model_settings.network.encoder if self.model_settings else None
        try:
            if isinstance(encoder, dict):
                raise InputError("the encoder of the served model is none of the known ones")
            return find_base(encoder, self.conf.get("base") or None, Path(self.app_dir))
        except InputError as error:
            logger.warning("no clicks, and Next Sample only 'random' and 'first': %s", error)
            return None

    @cached_property
    def background(self) -> Background | None:
        if self.base is None:
            return None
        key = f"{self.base.encoder} {file_key(self.base.checkpoint)}"
        store = Store(Path(self.app_dir, "next_sample"), key)
        return Background(store, self.base, self.served_file, lambda image: self.datastore().get_image_uri(image))

    def init_infers(self) -> dict[str, Any]:
        infers = super().init_infers()
        if self.base is None:
            return infers
        settings = self.model_settings
        labels = {name: value for value, name in enumerate(self.objects, 1)}
        try:
            promptable = Promptable(self.base)
        except InputError as error:
            logger.warning("no clicks: %s", error)
            return infers
        # z-scores are for networks that were trained with them
        scaling = replace(settings.scaling, intensity="percentiles") if settings else None
        shared = (promptable, Scans(scaling), threading.Lock(), labels)
        return {**infers, NAME: ClickTask(*shared, one_slice=True), NAME_3D: ClickTask(*shared, one_slice=False)}

    def init_strategies(self) -> dict[str, Any]:
        if self.background is None:
            return super().init_strategies()
        chooser = Chooser(self.background)
        return {name: ChosenStrategy(name, chooser) for name in DESCRIPTIONS} | super().init_strategies()

    def init_scoring_methods(self) -> dict[str, Any]:
        methods = super().init_scoring_methods()
        if self.background is None:
            return methods
        return (
            methods
            | {"samora_features": Features(self.background)}
            | ({"samora_uncertainty": Uncertainty(self.background)} if self.served_file else {})
        )

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> Any:
        """As MONAI Label's, but not where nothing is left to compute: it starts a process after each Next Sample."""
        if method is None and self.background is not None:
            try:
                if not self.background.lacks(self.datastore().get_unlabeled_images()):
                    return {}
            except Exception as error:  # of a DICOMweb server; scores are no reason to fail a request
                logger.warning("next sample: no scores were computed: %s", error)
                return {}
        return super().async_scoring(method, params)

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label's; for the interactive models, `start_from` names a stored label that becomes the draft."""
        request = {name: value for name, value in request.items() if name != "draft"}  # a path, not for clients
        if request.get("model") in (NAME, NAME_3D) and (tag := _first(request.get("start_from"))) not in (None, "none"):
            if tag not in ("original", "final"):
                raise InputError(f"start_from must be none, original or final, got {str(tag)[:80]!r}")
            file = (datastore or self.datastore()).get_label_uri(request["image"], tag)
            if not file:
                raise InputError(f"image {request['image']!r} has no label '{tag}'; use start_from none")
            request["draft"] = file
        return super().infer(request, datastore)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value
