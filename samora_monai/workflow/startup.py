"""The start of a run: the first expression of every bundle's `initialize`."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import torch

from samora_monai.errors import InputError
from samora_monai.workflow.error_hook import install_error_hook
from samora_monai.workflow.overrides import check_overrides
from samora_monai.workflow.processes import join_processes

# Warnings about other packages that neither a user nor a config can change, and what raises them
THIRD_PARTY_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r".*get_mask_edges:always_return_as_numpy"),  # monai.metrics.compute_hausdorff_distance
    (
        UserWarning,
        r"The image's intensity is a single value",
    ),  # monai.transforms.RandHistogramShift, of air
)


def start(device: torch.device | str, distributed: bool | str = False) -> None:
    """Prepare this process for a run, so that it reports a user's mistake in one line.

    Installs the error hook, hides warnings that no user can act on, keeps stdout from failing on file names that are
    not UTF-8, checks the overrides of the command line and the device, and joins the other processes.

    Raises:
        InputError: see `check_overrides`; the device cannot be used.
    """
    install_error_hook()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    for category, message in THIRD_PARTY_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("monai.bundle.scripts").setLevel(logging.WARNING)  # repeats the command's arguments
    check_overrides()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device '{device}' cannot be used ({reason}); give --device cpu, or another") from error
    join_processes(distributed)
