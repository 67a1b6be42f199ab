"""Make the plan of a pipeline: look at the scans, time this machine, and decide every setting with its reason."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samora_monai.data import Cases, find_cases
from samora_monai.data.datalist import datalist_text
from samora_monai.data.scans import absolute
from samora_monai.errors import InputError
from samora_monai.networks.config import DECODERS
from samora_monai.pipeline.at_hand import choose_device, find_base
from samora_monai.pipeline.folders import PLAN
from samora_monai.pipeline.plan import Plan
from samora_monai.pipeline.planning.decisions import (
    choose_classes,
    choose_modality,
    choose_postprocessing,
    choose_scaling,
    choose_slice_axis,
    hold_out,
)
from samora_monai.pipeline.planning.lengths import in_words, stage_lengths, with_enough_steps
from samora_monai.pipeline.planning.look import look_at
from samora_monai.pipeline.planning.plan_file import write_plan
from samora_monai.pipeline.planning.stage_settings import Scans, lowest_size, machine_settings, network_settings
from samora_monai.pipeline.planning.timing import given_steps
from samora_monai.replacing import replacing
from samora_monai.settings import check_run_settings, is_whole

DEFAULT_HOURS = 2.0
_SLICES_PER_PASS = 8


def make_plan(
    folder: Path,
    cases: Cases,
    run: Path,
    *,
    hours: float | None,
    modality: str | None,
    encoder: str | None,
    checkpoint: str | None,
    decoder: str,
    steps: int | None,
    device: str | None,
    jobs: int | None,
    seed: int,
    compare: bool = False,
    unlabeled: bool = False,
) -> Plan:
    """Make the plan of a folder of scans, and write `plan.yaml` and `data/dataset.json` in `run`.

    Args:
        folder: the scans.
        cases: what `find_folder` has found in it, some of them with labels.
        run: folder of the pipeline.
        hours: time budget; default: 2. Without effect if `steps` is given.
        modality: `"CT"` or `"MR"`; default: by datalist, headers and values.
        encoder, checkpoint: the base; default: one of Meta's files if at hand, else the stand-in.
        decoder: `"sam"` or `"hierarchical"`.
        steps: steps of the fine-tuning, instead of a time budget; the other stages get theirs in proportion.
        device: e.g. `"cpu"`; default: a GPU if there is one.
        jobs: number of runs at a time; default: 1 on a GPU, else up to 3, one for each level.
        seed: of every run, and of the choice of scans for validation.
        compare: whether SAMed will be trained too, which takes part of the time.
        unlabeled: whether the fine-tuning learns from scans without labels too, which doubles its steps' time.

    Raises:
        InputError: the data or a setting cannot be used; `plan.yaml` is then as before.
    """
    start = time.monotonic()
    _check_settings(hours, steps, jobs, decoder, seed)
    run = absolute(run)
    device, why_device = choose_device(device)
    base = find_base(encoder, checkpoint, run)
    print(f"base: {base.encoder}, {base.checkpoint}: {base.reason}", flush=True)
    facts, unreadable = look_at([*cases.training, *cases.validation, *cases.unlabeled])
    fact_of = {scan.image: scan for scan in facts}
    values = {scan.image: frozenset(scan.label_values) for scan in facts if scan.label_values is not None}
    lists, about_validation = hold_out(cases, seed, values)
    lists["unlabeled"] = [scan for scan in lists["unlabeled"] if scan["image"] in fact_of]
    listed = {name: [fact_of[scan["image"]] for scan in items] for name, items in lists.items()}
    labelled = [*listed["training"], *listed["validation"]]

    chosen, why_modality, doubts = choose_modality(facts, cases, modality)
    names, why_names = choose_classes(labelled, cases)
    scaling, why_scaling = choose_scaling(chosen, labelled)
    axis, why_axis = choose_slice_axis(facts)
    data = {"modality": chosen, **scaling, "slice_axis": axis, "class_names": names}
    why = {"modality": why_modality, **why_scaling, "slice_axis": why_axis, "class_names": why_names}
    reasons = {f"data.{key}": reason for key, reason in why.items()}
    scans = Scans(**listed, axis=axis)
    _write_datalist(run, folder, data, lists)
    notes = [about_validation, *doubts, *(f"left out: {reason}" for reason in unreadable)]
    if unlabeled and not scans.unlabeled:
        raise InputError(f"--unlabeled: '{folder}' has no scan without a label to learn from; add some or leave it out")
    if not scans.unlabeled:
        notes.append("no scan without labels: experts learn from the labelled scans alone, and nothing is predicted")
    print(*(f"note: {note}" for note in notes), sep="\n", flush=True)

    machine, why = machine_settings(device, jobs)
    reasons |= {f"run.{key}": reason for key, reason in {"device": why_device, **why}.items()}
    network, stages, why = network_settings(base, scans, len(names), decoder, unlabeled, machine, run)
    reasons |= why
    postprocessing, why = choose_postprocessing(labelled)
    stages["fine_tuning"] |= postprocessing
    reasons |= {f"stages.fine_tuning.{key}": reason for key, reason in why.items()}
    if steps is None:
        hours = hours or DEFAULT_HOURS
        rest = (data, machine, scans, run / "data", hours, start, compare)
        wanted = network["image_size"]
        size, found = with_enough_steps(
            wanted, lowest_size(base, device), lambda size: stage_lengths(stages, network | {"image_size": size}, *rest)
        )
        if size < wanted:
            network["image_size"] = size
            reasons["network.image_size"] = f"pixels; {wanted} would leave too few steps for the fine-tuning"
        lengths, why = found.stages, dict(found.reasons)
        about_time = f"expected time: {in_words(found.seconds)} of {in_words(3600 * hours)}"
        reasons["run.hours"] = f"time budget; {about_time}"
        print(about_time, flush=True)
    else:
        hours, lengths = None, given_steps(steps)
        why = {f"stages.{name}.steps": "as given for the fine-tuning, others in proportion" for name in lengths}
        reasons["run.hours"] = "steps were given"
    reasons |= why | {"run.seed": "of every run, and of the choice of scans for validation"}
    for name, length in lengths.items():
        reasons[f"stages.{name}.epochs"] = "equal parts of the steps; each ends with a checkpoint, to go on from"
        reasons[f"stages.{name}.val_interval"] = "epochs from one validation to the next, which takes time"
        stages[name] = {**length._asdict(), **stages[name]}
        stages[name]["warmup"] = min(stages[name]["warmup"], length.steps // 5)
    stages["inference"] = {"slices_per_pass": _SLICES_PER_PASS}
    reasons["stages.inference.slices_per_pass"] = "slices in one forward pass"
    plan = Plan(data, network, {**machine, "hours": hours, "seed": seed}, stages, reasons)
    write_plan(plan, run / PLAN, notes)
    return plan


def _check_settings(hours: float | None, steps: int | None, jobs: int | None, decoder: str, seed: int) -> None:
    if steps is not None and not is_whole(steps, 1):
        raise InputError(f"steps must be a whole number of at least 1, got {steps!r}; give --steps 1000, for example")
    if hours is not None and not 0 < hours < float("inf"):
        raise InputError(f"hours must be a number above 0, got {hours!r}; give --hours 2, for example")
    if jobs is not None and not is_whole(jobs, 1):
        raise InputError(f"jobs must be a whole number of at least 1, got {jobs!r}; give --jobs 2, for example")
    if decoder not in DECODERS:
        raise InputError(f"unknown decoder {decoder!r}; choose --decoder {' or '.join(DECODERS)}")
    check_run_settings(seed=seed)


def _write_datalist(
    run: Path, folder: Path, data: Mapping[str, Any], lists: Mapping[str, list[dict[str, str]]]
) -> None:
    """Write the datalist that all bundles read, and check it as they do."""
    about = f"the scans of {absolute(folder)}, for the pipeline in {run}"
    text = datalist_text(absolute(folder).name, about, data["modality"], data["class_names"], lists)
    file = run / "data" / "dataset.json"
    try:
        with replacing(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write '{file}': {error.strerror or error}; choose another --output") from error
    find_cases(run / "data")
