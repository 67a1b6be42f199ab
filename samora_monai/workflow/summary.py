"""A summary of a run before it starts: device, data, network, memory."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sized
from typing import Any

import ignite.distributed as idist
import monai
import torch
from torch import nn

from samora_monai import __version__
from samora_monai.checkpoints import ModelSettings
from samora_monai.data import SliceDataset, UnlabeledScans
from samora_monai.data.datalist import Cases
from samora_monai.inference import precision
from samora_monai.networks.blocks import Encoder

logger = logging.getLogger(__name__)

GB = 1e9
PATCH = 16  # side of a token in pixels


def print_summary(
    network: nn.Module,
    device: torch.device | str,
    cases: Cases,
    model: ModelSettings,
    batch_size: int,
    amp: bool | str,
    dataset: SliceDataset,
    validation: Sized,
    unlabeled: SliceDataset | None = None,
) -> None:
    """Log device, versions, scans, classes, network and expected memory, on rank 0.

    Args:
        network: the network, not its DistributedDataParallel wrapper; `describe() -> str` is its line, if it has one.
        batch_size: slices per step and process.
        amp: as given, see `precision`.
        dataset, validation: the slices of the training scans, and the validation scans.
        unlabeled: the slices of unlabelled scans, with which a step has twice as many.
    """
    if idist.get_rank() > 0:
        return
    slices = f"{len(dataset)} of {dataset.num_slices_total} slices"
    rows = [
        ("data", cases.source),
        ("scans", f"{len(cases.training)} training ({slices}), {len(validation)} validation"),
        ("classes", ", ".join(f"{i} {name}" for i, name in enumerate(model.class_names))),
    ]
    slice_bytes = dataset.nbytes
    if unlabeled is not None:
        left_out = f", {unlabeled.num_empty} nearly empty ones left out" if unlabeled.num_empty else ""
        rows.append(("unlabelled", f"{unlabeled.num_volumes} scans, {len(unlabeled)} slices{left_out}"))
        batch_size *= 2
        slice_bytes += unlabeled.nbytes
    _log(rows, network, device, batch_size, model.network.image_size, amp, slice_bytes)


def print_pretraining_summary(
    network: nn.Module,
    device: torch.device | str,
    scans: UnlabeledScans,
    batch_size: int,
    image_size: int,
    amp: bool | str,
    dataset: SliceDataset,
    held_out: SliceDataset,
    teacher: str | None = None,
) -> None:
    """Log the summary of a training on unlabelled scans: files by format, and files left out. Rank 0 only.

    Args:
        dataset, held_out: the slices of the scans that train and of those that are held out.
        teacher: one line about the teacher, if there is one.
    """
    if idist.get_rank() > 0:
        return
    formats = ", ".join(f"{count} {name}" for name, count in scans.counts().items())
    rows = [("data", scans.source), ("files", formats)]
    rows += [("passed over", f"folder of labels {folder}") for folder in scans.label_folders]
    if scans.label_files:
        rows.append(("passed over", f"{len(scans.label_files)} label files, e.g. {scans.label_files[0]}"))
    rows += [("unreadable", path) for path in (*dataset.unreadable, *held_out.unreadable)]
    for name, slices in (("training", dataset), ("held out", held_out)):
        left_out = f", {slices.num_empty} nearly empty ones left out" if slices.num_empty else ""
        rows.append((name, f"{slices.num_volumes} scans, {len(slices)} slices{left_out}"))
    if teacher is not None:
        rows.append(("teacher", teacher))
    _log(rows, network, device, batch_size, image_size, amp, dataset.nbytes)


def _log(
    rows: list[tuple[str, str]],
    network: nn.Module,
    device: torch.device | str,
    batch_size: int,
    image_size: int,
    amp: bool | str,
    slice_bytes: int,
) -> None:
    """Log `rows` between those of the device and those of the network."""
    processes = f" x {idist.get_world_size()} processes" if idist.get_world_size() > 1 else ""
    trainable, total = count_parameters(network)
    describe: Any = getattr(network, "describe", None)
    bfloat16, numbers = precision(amp, device, network)
    parts = training_bytes(network, batch_size, image_size, bfloat16)
    about = "about" if "activations" in parts else "activations and"
    memory = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())
    memory = f"{about} {_gigabytes(sum(parts.values()))} for training ({memory})"
    for name, text in (
        ("device", _device(torch.device(device)) + processes),
        ("versions", f"samora_monai {__version__}, monai {monai.__version__}, torch {torch.__version__}"),
        *rows,
        ("network", describe() if callable(describe) else type(network).__name__),
        ("parameters", f"{_millions(trainable)} of {_millions(total)} train ({trainable / total:.1%})"),
        ("numbers", numbers),
        ("memory", f"{memory}; {_gigabytes(slice_bytes)} of RAM for the slices"),
    ):
        logger.info(f"{name:<11} {text}")


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Return the number of trainable values and the number of all values."""
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def training_bytes(network: nn.Module, batch_size: int, image_size: int, amp: bool) -> dict[str, float]:
    """Estimate the memory of a training step by part: `weights`, `training` (gradients and AdamW), `activations`.

    A weight takes 4 bytes; a trainable one 12 more, for its gradient and AdamW's two moments. Activations: 1.5 tensors
    of the size of each matrix's output, frozen or not, over all tokens of its block, or of 16 x 16 pixels outside of
    blocks (autograd keeps 0.6 to 1.3 times that); left out where most trainable weights belong to convolutions, whose
    outputs depend on their strides.
    The framework's own memory and the savings of gradient checkpointing are not counted.
    """
    trainable, total = count_parameters(network)
    sides = _token_sides(network)
    outputs = sum(p.shape[0] * (image_size // sides.get(p, PATCH)) ** 2 for p in network.parameters() if p.ndim == 2)
    activations = 1.5 * batch_size * outputs * (2 if amp else 4) if trainable else 0
    known = {"weights": 4.0 * total, "training": 12.0 * trainable}
    convolutions = sum(p.numel() for p in network.parameters() if p.ndim == 4 and p.requires_grad)
    return known if 2 * convolutions > trainable else known | {"activations": activations}


def _token_sides(network: nn.Module) -> dict[nn.Parameter, int]:
    """Side of the tokens in pixels for each parameter of an encoder's blocks; those of SAM 2 differ by stage."""
    return {
        parameter: next(side for last, side in zip(encoder.taps, encoder.tap_strides, strict=True) if i <= last)
        for encoder in network.modules()
        if isinstance(encoder, Encoder)
        for i, block in enumerate(encoder.encoder_blocks())
        for parameter in block.parameters()
    }


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    properties = torch.cuda.get_device_properties(device)
    return f"{device} ({properties.name}, {properties.total_memory / GB:.0f} GB)"


def _gigabytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 1e6:.0f} MB"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
