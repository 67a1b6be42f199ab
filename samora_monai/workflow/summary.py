"""What a run is about to do, on one screen before it starts."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ignite.distributed as idist
import monai
import torch
from torch import nn

from samora_monai import __version__

if TYPE_CHECKING:
    from samora_monai.data.datalist import Cases
    from samora_monai.data.slices import SliceDataset
    from samora_monai.data.unlabeled import UnlabeledScans

GB = 1e9
PATCH = 16  # side of a token in pixels


def print_summary(
    network: nn.Module,
    device: torch.device,
    cases: Cases,
    class_names: Sequence[str],
    batch_size: int,
    image_size: int,
    amp: bool,
    dataset: SliceDataset | None = None,
) -> None:
    """Print device, versions, scans, classes, network and expected memory. Rank 0 only.

    Args:
        network: the network itself, not its DistributedDataParallel wrapper; its `describe() -> str` is printed
            if it has one.
        device: where it trains.
        cases: training and validation scans and where they come from.
        class_names: in the order of the label values, background first.
        batch_size: slices per step and process.
        image_size: side of the network's input in pixels.
        amp: whether activations are half precision.
        dataset: the training data set, whose slices and memory are then told.
    """
    if idist.get_rank() > 0:
        return
    _print(
        device,
        [
            ("data", cases.source),
            ("scans", _scans(cases, dataset)),
            ("classes", ", ".join(f"{i} {name}" for i, name in enumerate(class_names))),
            *_network_rows(network, batch_size, image_size, amp, dataset),
        ],
    )


def print_pretraining_summary(
    network: nn.Module,
    device: torch.device,
    scans: UnlabeledScans,
    batch_size: int,
    image_size: int,
    amp: bool,
    dataset: SliceDataset,
    held_out: SliceDataset,
    teacher: str | None = None,
) -> None:
    """The same for a training on unlabelled scans: which files of which formats, what was passed over. Rank 0 only.

    Args:
        network, device, batch_size, image_size, amp: as in `print_summary`.
        scans: the files that were found.
        dataset, held_out: their slices.
        teacher: one line about the teacher, if there is one.
    """
    if idist.get_rank() > 0:
        return
    formats = ", ".join(f"{count} {name}" for name, count in scans.counts().items())
    rows = [("data", scans.source), ("files", formats)]
    rows += [("passed over", f"folder of labels {folder}") for folder in scans.passed_over]
    if scans.label_files:
        rows.append(("passed over", f"{len(scans.label_files)} label files, e.g. {scans.label_files[0]}"))
    rows += [("unreadable", path) for path in (*dataset.unreadable, *held_out.unreadable)]
    for name, slices in (("training", dataset), ("held out", held_out)):
        left_out = f", {slices.num_empty} nearly empty ones left out" if slices.num_empty else ""
        rows.append((name, f"{slices.num_volumes} scans, {len(slices)} slices{left_out}"))
    if teacher is not None:
        rows.append(("teacher", teacher))
    _print(device, [*rows, *_network_rows(network, batch_size, image_size, amp, dataset)])


def _network_rows(
    network: nn.Module, batch_size: int, image_size: int, amp: bool, dataset: SliceDataset | None
) -> list[tuple[str, str]]:
    trainable, total = count_parameters(network)
    return [
        ("network", _describe(network)),
        ("parameters", f"{_millions(trainable)} of {_millions(total)} train ({trainable / total:.1%})"),
        ("memory", _memory(network, batch_size, image_size, amp, dataset)),
    ]


def _print(device: torch.device, rows: list[tuple[str, str]]) -> None:
    ranks = f" x {idist.get_world_size()} processes" if idist.get_world_size() > 1 else ""
    head = [
        ("device", _device(torch.device(device)) + ranks),
        ("versions", f"samora_monai {__version__}, monai {monai.__version__}, torch {torch.__version__}"),
    ]
    print("\n".join(f"{name:<11} {text}" for name, text in head + rows), flush=True)


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """Number of trainable values, number of all values."""
    counts = [(p.numel(), p.requires_grad) for p in network.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def training_bytes(network: nn.Module, batch_size: int, image_size: int, amp: bool) -> dict[str, float]:
    """Estimated memory of a training step by part: `weights`, `training` (gradients and AdamW), `activations`.

    Weights count 4 bytes; a trainable value 12 more for its gradient and AdamW's two moments. Activations that wait for
    the backward pass are taken as 1.5 tensors as large as the output of each matrix on every token of 16 x 16 pixels:
    its own input, and the norm, GELU or residual around it. Frozen matrices count too, since the gradient passes
    through them. Measured on this package's networks, autograd keeps 0.6 to 1.2 times that. Counts neither the
    framework's own memory nor what gradient checkpointing saves. There are no `activations` for a network
    that trains more convolutions than anything else: theirs depend on the strides.
    """
    trainable, total = count_parameters(network)
    tokens = batch_size * (image_size // PATCH) ** 2
    outputs = sum(p.shape[0] for p in network.parameters() if p.ndim == 2)
    activations = 1.5 * tokens * outputs * (2 if amp else 4) if trainable else 0
    known = {"weights": 4.0 * total, "training": 12.0 * trainable}
    convolutions = sum(p.numel() for p in network.parameters() if p.ndim == 4 and p.requires_grad)
    return known if 2 * convolutions > trainable else known | {"activations": activations}


def _describe(network: nn.Module) -> str:
    describe = getattr(network, "describe", None)
    return describe() if callable(describe) else type(network).__name__


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
    properties = torch.cuda.get_device_properties(device)
    return f"{device} ({properties.name}, {properties.total_memory / GB:.0f} GB)"


def _scans(cases: Cases, dataset: SliceDataset | None) -> str:
    slices = f" ({len(dataset)} of {dataset.num_slices_total} slices)" if dataset is not None else ""
    return f"{len(cases.training)} training{slices}, {len(cases.validation)} validation"


def _memory(network: nn.Module, batch_size: int, image_size: int, amp: bool, dataset: SliceDataset | None) -> str:
    parts = training_bytes(network, batch_size, image_size, amp)
    text = "about" if "activations" in parts else "activations and"
    text += f" {_gigabytes(sum(parts.values()))} for training ("
    text += ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items()) + ")"
    return text if dataset is None else f"{text}; {_gigabytes(dataset.nbytes)} of RAM for the slices"


def _gigabytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= 0.05 * GB else f"{size / 1e6:.0f} MB"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
