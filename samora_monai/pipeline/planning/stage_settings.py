"""Settings of the base and of the stages, but for their length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samora_monai.inference import use_bfloat16
from samora_monai.networks import build_segmenter
from samora_monai.pipeline.at_hand import TEACHERS as PUBLIC_TEACHERS
from samora_monai.pipeline.at_hand import Base, cores, find_file, free_memory
from samora_monai.pipeline.plan import EXPERTS, SAMORA, SCORED_ON_TRAINING, TEACHERS, TRAININGS, default_settings
from samora_monai.pipeline.planning.decisions import STEP, choose_image_size, num_slices
from samora_monai.pipeline.planning.look import ScanFacts
from samora_monai.pipeline.recipes import LEARNING, SMALL_DECODER, STAND_INS, TEACHER_NETWORKS
from samora_monai.workflow.summary import training_bytes

_KINDS = {"teacher": TEACHERS, "expert": EXPERTS, "tuning": ("fine_tuning",)}  # by the last word of a stage's name
_BATCH_SIZES = {  # slices in a step
    "stand-in": {"teacher": 16, "expert": 8, "tuning": 4},
    "cpu": {"teacher": 16, "expert": 8, "tuning": 4},  # SAM's weights on a CPU, which allows few steps
    "gpu": {kind: default_settings(stages[0])["batch_size"] for kind, stages in _KINDS.items()},
}
_LIMITS = {"stand-in": (192, 256), "cpu": (128, 224), "gpu": (224, 512)}  # sizes of the input that suit a base
_LOWEST = {"stand-in": 128, "cpu": 128, "gpu": 224}  # where memory or time are short
_SMALL_BATCH = 2  # contrastive learning needs two slices
_GIGABYTE = 1e9
_OF_A_PROCESS = 1.0  # GB, without the network
_SLOW_READING = 60.0  # seconds
# Settings of stages that have no scan to hold out
_ALONE = {"scans": "$samora_monai.data.find_unlabeled(@unlabeled, @datalist).without_held_out()"}
_NOT_HELD_OUT = {
    **dict.fromkeys((*TEACHERS, *EXPERTS), _ALONE),
    "fine_tuning": SCORED_ON_TRAINING,
}


@dataclass(frozen=True)
class Scans:
    """The facts of the scans of each list.

    Args:
        axis: the slice axis.
    """

    training: Sequence[ScanFacts]
    validation: Sequence[ScanFacts]
    unlabeled: Sequence[ScanFacts]
    axis: int

    @property
    def all(self) -> list[ScanFacts]:
        """The scans of all lists."""
        return [*self.training, *self.validation, *self.unlabeled]

    @property
    def labelled(self) -> list[ScanFacts]:
        """The scans with labels."""
        return [*self.training, *self.validation]

    def slices(self, scans: Sequence[ScanFacts]) -> int:
        """Number of slices of some scans."""
        return sum(num_slices(scan, self.axis) for scan in scans)


def machine_settings(device: str, jobs: int | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of the machine, and the reason for each; `jobs` may be given."""
    gpu, count = torch.device(device).type == "cuda", cores()
    reasons = {"jobs": "runs at a time: given"}
    if jobs is None:
        jobs = 1 if gpu else min(count, 3)
        reasons["jobs"] = f"runs at a time: {'one on a GPU' if gpu else f'one for each level, on {count} cores'}"
    reasons["threads"] = f"of each of {jobs} runs, of {count} cores; a run alone gets all"
    workers = min(8, count - 1) if gpu else 0
    reasons["num_workers"] = "processes that prepare slices beside each run" if gpu else "none beside the runs on a CPU"
    reasons["amp"] = "bfloat16 where the machine has it and the network is faster in it"
    threads = max(1, count // jobs)
    return {"device": device, "amp": "auto", "num_workers": workers, "jobs": jobs, "threads": threads}, reasons


def _kind(base: Base, device: str) -> str:
    return "stand-in" if base.encoder in STAND_INS else "gpu" if torch.device(device).type == "cuda" else "cpu"


def lowest_size(base: Base, device: str) -> int:
    """The smallest input that a base gets where memory or time are short, in pixels."""
    return _LOWEST[_kind(base, device)]


def network_settings(
    base: Base,
    scans: Scans,
    num_classes: int,
    decoder: str,
    unlabeled: bool,
    machine: Mapping[str, Any],
    run: Path,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, str]]:
    """Settings of the base and of each stage, so small that they fit into the memory; and reasons by their keys."""
    stand_in, kind = base.encoder in STAND_INS, _kind(base, machine["device"])
    size, why_size = choose_image_size(scans.labelled, scans.axis, *_LIMITS[kind])
    stages = {name: _stage(name, kind, decoder, unlabeled, run) for name in TRAININGS}
    free, last = free_memory(machine["device"]), stages["fine_tuning"]
    given = {key: last[key] for key in ("rank", "decoder") if key in last}
    while True:
        net = build_segmenter(base.encoder, size, None, num_classes, **given, **SAMORA)
        bfloat16 = use_bfloat16(machine["amp"], machine["device"], net)
        batch = stages["fine_tuning"]["batch_size"] * (2 if unlabeled else 1)
        parts = training_bytes(net, batch, size, bfloat16)
        needed = machine["jobs"] * (sum(parts.values()) / _GIGABYTE + _OF_A_PROCESS)
        smallest = stages["fine_tuning"]["batch_size"] <= _SMALL_BATCH
        if needed < 0.9 * free / _GIGABYTE or (smallest and size <= _LOWEST[kind]):
            break
        if smallest:
            size -= STEP
        for stage in stages.values() if not smallest else ():
            stage["batch_size"] = max(_SMALL_BATCH, stage["batch_size"] // 2)
    reasons = _reasons(stages, stand_in)
    reasons |= {"network.encoder": "the base that the experts adapt", "network.sam_checkpoint": base.reason}
    reasons["network.image_size"] = (
        f"pixels, a multiple of {STEP}; {why_size}; needs about {needed:.1f} of {free / _GIGABYTE:.1f} GB of memory"
    )
    slices = 2 * scans.slices(scans.all) * size**2 * machine["jobs"]  # bytes
    if slices > free_memory("cpu") / 3 or sum(scan.seconds for scan in scans.all) > _SLOW_READING:
        for name in (*TEACHERS, *EXPERTS):
            stages[name]["cache_dir"] = str(run / "slices")
            reasons[f"stages.{name}.cache_dir"] = "resized slices on disk, so that scans are read once"
    for name in _without_held_out(scans):
        stages[name] |= _NOT_HELD_OUT[name]
        why = "no scan to hold out, so epochs are scored on the training scans"
        reasons |= {f"stages.{name}.{key}": why for key in _NOT_HELD_OUT[name]}
    network = {"encoder": base.encoder, "sam_checkpoint": base.checkpoint, "image_size": size}
    return network, stages, reasons


def _stage(name: str, kind: str, decoder: str, unlabeled: bool, run: Path) -> dict[str, Any]:
    level, _, part = name.rpartition("_")
    stand_in = kind == "stand-in"
    public = None if stand_in or level not in PUBLIC_TEACHERS else find_file(PUBLIC_TEACHERS[level], run)
    recipe = {
        "teacher": LEARNING[public is None].get(name, {}),
        "expert": LEARNING[stand_in]["expert"] | (LEARNING[stand_in]["taught"] if level in PUBLIC_TEACHERS else {}),
        "tuning": LEARNING[stand_in]["fine-tuning"]
        | LEARNING[stand_in]["fused"]
        | {"decoder": decoder, "unlabeled": unlabeled},
    }[part]
    defaults = {key: default_settings(name)[key] for key in ("learning_rate", "warmup")}
    settings: dict[str, Any] = {"batch_size": _BATCH_SIZES[kind][part], **defaults, **recipe}
    if level in PUBLIC_TEACHERS:
        settings["teacher_network"] = TEACHER_NETWORKS[public is None][level]
    if public is not None and part == "teacher":
        settings["initial_checkpoint"] = str(public)
    return settings | (SMALL_DECODER if stand_in and name == "pixel_expert" else {})


def _without_held_out(scans: Scans) -> tuple[str, ...]:
    """The stages that have no scan to hold out."""
    if scans.validation:
        return ()
    return TRAININGS if len(scans.all) == 1 else ("fine_tuning",)


def _reasons(stages: Mapping[str, Mapping[str, Any]], stand_in: bool) -> dict[str, str]:
    reasons: dict[str, str] = {}
    recipe = "recipe for the stand-in" if stand_in else "default of the bundle"
    for name, stage in stages.items():
        about = {
            "batch_size": "slices in a step, for this device and its memory",
            "learning_rate": recipe,
            "warmup": f"steps of a rising learning rate, at most a fifth of all; {recipe}",
            "rank": f"of the experts, equal in all stages; {recipe}",
            "view_size": "pixels, the teacher's input",
            "expert_rate": "learning rate of the experts, relative to that of HL-Attn and the decoder; " + recipe,
            "weight_decay_on": "not on experts, norms, biases and tokens; " + recipe,
            "max_gradient_norm": "of the gradients, without which HL-Attn diverges at this rate; " + recipe,
            "standardise_targets": "each channel of the teacher's features, which are nearly constant; " + recipe,
            "unlabeled": "true: learn from the scans without labels here too, in twice the time: see --unlabeled",
            "decoder": "sam (SAMora) or hierarchical (H-SAMora)",
            "decoder_features": "small, as the base is",
            "teacher_network": "a small one, trained from random weights on these scans",
            "initial_checkpoint": "public weights, found at hand, whose training is continued on these scans",
        }
        if stage.get("teacher_network") not in (None, "tiny"):
            about["teacher_network"] = "the paper's"
        reasons |= {f"stages.{name}.{key}": about[key] for key in stage}
    return reasons
