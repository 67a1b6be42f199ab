"""The plan of a pipeline: the settings of every run of a bundle, with the reason for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from samora_monai.bundles import bundle_path
from samora_monai.data import ScanScaling
from samora_monai.data.classes import MAX_CLASSES
from samora_monai.errors import InputError
from samora_monai.networks import LEVELS, SegmenterConfig
from samora_monai.settings import amp_choice, check_run_settings, is_whole

TEACHERS = ("image_teacher", "patch_teacher")
EXPERTS = ("image_expert", "patch_expert", "pixel_expert")
TRAININGS = (*TEACHERS, *EXPERTS, "fine_tuning")  # runs of a bundle that train
CONFIGS = {  # the configs of the bundle that a stage runs
    **dict.fromkeys(TEACHERS, ("train.yaml", "teacher.yaml")),
    **dict.fromkeys((*EXPERTS, "fine_tuning"), ("train.yaml",)),
    "inference": ("inference.json",),
}

SAMORA: dict[str, Any] = {"experts": list(LEVELS), "fusion": "attention"}  # settings of the fine-tuning
# settings of a fine-tuning and of an evaluation that have no scan for validation
SCORED_ON_TRAINING = {"validate::dataset::data": "$@data_set.cases.training"}

_DATA = ("modality", "window", "percentiles", "slice_axis", "class_names")
_NETWORK = ("encoder", "sam_checkpoint", "image_size")
_RUN = ("device", "amp", "num_workers", "jobs", "threads", "hours", "seed")
_STAGE = ("steps", "epochs", "batch_size", "learning_rate", "warmup")


@dataclass(frozen=True)
class Plan:
    """Settings under the names that they have in the bundles, so that each can be given to `monai.bundle run`.

    Args:
        data: settings of the scans for all runs: `modality`, `window`, `percentiles`, `slice_axis`, `class_names`; and
            `intensity`, if it is given.
        network: settings of the base for all runs that use it: `encoder`, `sam_checkpoint`, `image_size`.
        run: settings of the machine that do not change what a run computes, but for rounding: `device`, `amp`,
            `num_workers`; `jobs` is the number of runs at a time and `threads` the number of threads of each; `hours`
            the time budget, None if the steps were given; `seed`.
        stages: for each of `TRAININGS` its `steps`, `epochs` (equal parts of the steps, each of which ends with a
            checkpoint; with a validation too, unless `val_interval` is given), `batch_size`, `learning_rate`, `warmup`,
            and any other setting of that bundle; for `inference` `slices_per_pass`.
        reasons: the reason for a setting, by its key, e.g. `"data.modality"`; comments in the file.

    Raises:
        InputError: a setting is missing, unknown or out of range; the message starts with its key.
    """

    data: Mapping[str, Any]
    network: Mapping[str, Any]
    run: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check_keys("data", self.data, _DATA, (*_DATA, "intensity"))
        _check_keys("network", self.network, _NETWORK, _NETWORK)
        _check_keys("run", self.run, _RUN, _RUN)
        _check_keys("stages", self.stages, (*TRAININGS, "inference"), (*TRAININGS, "inference"))
        for stage in TRAININGS:
            _check_keys(f"stages.{stage}", self.stages[stage], _STAGE, ("steps", *default_settings(stage)))
        _check_keys(
            "stages.inference", self.stages["inference"], ("slices_per_pass",), tuple(default_settings("inference"))
        )
        _check_data(self.data)
        _check_run(self.run)
        for stage in TRAININGS:
            _check_stage(stage, self.stages[stage])
        _checked("stages.inference", check_run_settings, slices_per_pass=self.stages["inference"]["slices_per_pass"])
        self._check_network()

    @property
    def rank(self) -> int | None:
        """Rank of the experts; None is the bundles' own."""
        return self.stages["fine_tuning"].get("rank")

    def _check_network(self) -> None:
        checkpoint = self.network["sam_checkpoint"]
        if not isinstance(checkpoint, str) or not checkpoint:
            raise InputError(f"network.sam_checkpoint must be the path of the base's weights, got {checkpoint!r}")
        for stage in (*EXPERTS, "fine_tuning"):
            if (rank := self.stages[stage].get("rank")) != self.rank:
                raise InputError(
                    f"stages.{stage}.rank is {rank} but that of stages.fine_tuning is {self.rank}; "
                    "experts and fine-tuning need the same rank"
                )
        last = self.stages["fine_tuning"]
        given = {key: last[key] for key in ("rank", "decoder") if key in last}
        shape = {key: self.network[key] for key in ("encoder", "image_size")}
        _checked("network", SegmenterConfig, **shape, num_classes=len(self.data["class_names"]), **given)


def bundle_of(stage: str) -> Path:
    """The folder of the bundle that a stage runs, to be copied."""
    level, _, kind = stage.rpartition("_")
    return bundle_path(f"samora_{level}_expert" if kind in ("teacher", "expert") else "samora_segmentation")


@cache
def default_settings(stage: str) -> Mapping[str, Any]:
    """The configs of a stage: the settings of its bundle with their defaults, and the wiring."""
    found: dict[str, Any] = {}
    for name in CONFIGS[stage]:
        found |= yaml.safe_load((bundle_of(stage) / "configs" / name).read_text(encoding="utf-8"))
    return found


def _check_keys(section: str, settings: Any, required: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not isinstance(settings, Mapping):
        raise InputError(f"{section} must hold settings, one 'name: value' a line, got {settings!r:.80}")
    for key in settings:
        if str(key).split("::")[0] not in known:
            close = get_close_matches(str(key), known, 1)
            remedy = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(required)}"
            raise InputError(f"{section}.{key} is no setting of a plan; {remedy}")
    if missing := [key for key in required if key not in settings]:
        raise InputError(f"{section}.{missing[0]} is missing; add it, or delete the plan to have it made again")


def _check_data(data: Mapping[str, Any]) -> None:
    names = data["class_names"]
    _checked("data", ScanScaling, **{key: value for key, value in data.items() if key != "class_names"})
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"data.class_names must be a list of names, background first, got {names!r:.80}")
    if not 2 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise InputError(
            f"data.class_names must be 2 to {MAX_CLASSES} different names, background first, got {list(names)!r:.80}"
        )


def _check_run(run: Mapping[str, Any]) -> None:
    _checked("run", check_run_settings, num_workers=run["num_workers"], seed=run["seed"])
    for key in ("jobs", "threads"):
        if not is_whole(run[key], 1):
            raise InputError(f"run.{key} must be a whole number of at least 1, got {run[key]!r}")
    hours = run["hours"]
    number = isinstance(hours, int | float) and not isinstance(hours, bool) and 0 < hours < math.inf
    if hours is not None and not number:
        raise InputError(f"run.hours must be a number above 0, or null, got {hours!r}")
    _checked("run", amp_choice, run["amp"])
    try:
        torch.device(run["device"])
    except (RuntimeError, TypeError) as error:
        raise InputError(f"run.device must be cpu, cuda or cuda:N, got {run['device']!r}") from error


def _check_stage(stage: str, settings: Mapping[str, Any]) -> None:
    names = ("epochs", "val_interval", "batch_size", "learning_rate", "warmup")
    given = {name: settings[name] for name in names if name in settings}
    _checked(f"stages.{stage}", check_run_settings, **given)
    steps, epochs = settings["steps"], settings["epochs"]
    if not is_whole(steps, 1) or steps % epochs:
        raise InputError(
            f"stages.{stage}.steps must be a multiple of its epochs ({epochs}), which are equal parts, got {steps!r}"
        )


def _checked(section: str, check: Any, *args: Any, **settings: Any) -> None:
    """Call a check whose message starts with the name of a setting."""
    try:
        check(*args, **settings)
    except InputError as error:
        named = str(error).split()[0] in (
            *_DATA,
            "intensity",
            *_NETWORK,
            *_RUN,
            *_STAGE,
            "val_interval",
            "slices_per_pass",
        )
        raise InputError(f"{section}{'.' if named else ': '}{error}") from error
