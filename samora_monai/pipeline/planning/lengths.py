"""Steps of each stage: within a time budget, by a timing of this machine, or as given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samora_monai.errors import InputError
from samora_monai.pipeline.plan import EXPERTS, SAMORA, TEACHERS, TRAININGS
from samora_monai.pipeline.planning.decisions import STEP, plane
from samora_monai.pipeline.planning.stage_settings import Scans
from samora_monai.pipeline.planning.timing import SHARES, Length, Speed, Work, fit_steps, measure

_PASSES = {**dict.fromkeys(TEACHERS, 100), **dict.fromkeys(EXPERTS, 20), "fine_tuning": 200}  # over the slices, at most
_MOST_STEPS = 3000  # where these passes are shorter
_ENOUGH = 300  # steps of the fine-tuning; with fewer, a smaller input is taken
_HELD_OUT = 0.1  # of the scans, in stage 1
_RESIZING = 0.003  # seconds for a slice
_WRITING, _SCORING = 1.0, 2.0  # seconds for a scan
_FORWARD = 0.4  # of a training step
_DATA = ("modality", "window", "percentiles", "slice_axis")


@dataclass(frozen=True)
class Lengths:
    """Lengths of the stages.

    Args:
        stages: length of each stage.
        reasons: the reason for the steps of each stage, by the key in the plan.
        seconds: expected time of the whole pipeline.
    """

    stages: Mapping[str, Length]
    reasons: Mapping[str, str]
    seconds: float


def stage_lengths(
    stages: Mapping[str, Mapping[str, Any]],
    network: Mapping[str, Any],
    data: Mapping[str, Any],
    machine: Mapping[str, Any],
    scans: Scans,
    datalist: Path,
    hours: float,
    start: float,
    compare: bool,
) -> Lengths:
    """Time this machine, and return the lengths of the stages that end within `hours`.

    Args:
        stages: settings of each stage without its length.
        network, data, machine: of the plan.
        datalist: folder of the datalist.
        start: time by `time.monotonic` from which on `hours` are counted.
        compare: whether SAMed is trained too.

    Raises:
        InputError: `hours` is too short.
    """
    sizes = sorted(plane(scan, scans.axis) for scan in scans.labelled)
    scaling = {key: data[key] for key in _DATA}
    of_teachers = {"image_size": network["image_size"]}
    settings = {
        name: {
            "dataset_dir": str(datalist),
            **scaling,
            **(of_teachers if name in TEACHERS else network),
            **stages[name],
        }
        for name in TRAININGS
    }
    settings["fine_tuning"] |= {**SAMORA, "class_names": data["class_names"]}
    speed = measure(settings, machine, sizes[len(sizes) // 2])
    work = _work(stages, speed, scans, compare)
    spent = time.monotonic() - start
    lengths, seconds = fit_steps(hours, spent, speed, work, machine["jobs"])
    reasons = {}
    for name, (count, *_) in lengths.items():
        limit = ", the most that seems useful" if count >= work.most[name] else f", {SHARES[name]:.0%} of the work"
        reasons[f"stages.{name}.steps"] = f"measured {speed.steps[name]:.2g} s a step{limit}"
    return Lengths(lengths, reasons, spent + seconds)


def with_enough_steps(size: int, lowest: int, fit: Callable[[int], Lengths]) -> tuple[int, Lengths]:
    """Reduce the size of the input until the fine-tuning gets enough steps.

    Args:
        size: of the input.
        lowest: size that is not reduced.
        fit: returns the lengths of the stages with an input of some size.

    Raises:
        InputError: the time budget is too short even for the lowest size.
    """
    while True:
        try:
            found = fit(size)
        except InputError:
            if size == lowest:
                raise
            size = lowest
            continue
        part = found.stages["fine_tuning"].steps / _ENOUGH
        if part >= 1 or size == lowest:
            return size, found
        size = max(lowest, STEP * int(size * math.sqrt(part) / STEP))  # time grows with the number of pixels


def in_words(seconds: float) -> str:
    """A time, e.g. `"1 h 20 min"`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _work(stages: Mapping[str, Mapping[str, Any]], speed: Speed, scans: Scans, compare: bool) -> Work:
    def reading(part: list) -> float:
        return sum(scan.seconds for scan in part) + _RESIZING * scans.slices(part)

    def inference(part: list) -> float:
        return sum(scan.seconds for scan in part) + scans.slices(part) * speed.slice

    volumes = [scan for scan in scans.unlabeled if scan.is_volume]
    scored = list(scans.validation or scans.training)
    held_out = scans.slices(scans.validation) or _HELD_OUT * scans.slices(scans.all)
    pretraining = (*TEACHERS, *EXPERTS)
    validation = {name: _FORWARD * speed.steps[name] * held_out / stages[name]["batch_size"] for name in pretraining}
    read = scans.all if stages["fine_tuning"]["unlabeled"] else scans.labelled
    slices = dict.fromkeys(pretraining, scans.slices(scans.all)) | {"fine_tuning": scans.slices(scans.training)}
    passes = {name: _PASSES[name] * slices[name] // stages[name]["batch_size"] for name in TRAININGS}
    return Work(
        reading=dict.fromkeys(pretraining, reading(scans.all)) | {"fine_tuning": reading(read)},
        validation=validation | {"fine_tuning": inference(scored)},
        evaluation=inference(scored) + _SCORING * len(scored),
        prediction=inference(volumes) + _WRITING * len(volumes) if volumes else 0.0,
        most={name: max(_MOST_STEPS, count) for name, count in passes.items()},
        compare=compare,
    )
