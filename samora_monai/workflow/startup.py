"""The first expression of every bundle's `initialize`.

imports:
- $import samora_monai.workflow.startup as startup
initialize:
- $startup.start()
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import TYPE_CHECKING

import torch

from samora_monai.errors import InputError
from samora_monai.workflow.error_hook import install_error_hook
from samora_monai.workflow.overrides import check_overrides
from samora_monai.workflow.tracking import track_undecollated_loss

if TYPE_CHECKING:
    from samora_monai.data.unlabeled import UnlabeledScans

# Warnings about code of MONAI that neither a user nor a config can change
THIRD_PARTY_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # monai.engines.Trainer.run with amp
    (FutureWarning, r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated"),
    # monai.metrics.compute_hausdorff_distance, about its own call
    (FutureWarning, r".*get_mask_edges:always_return_as_numpy"),
    # monai.transforms.RandHistogramShift, of a slice that shows air alone
    (UserWarning, r"The image's intensity is a single value"),
    # torch, when the scaler of float16 training skips its first step, as it is meant to
    (UserWarning, r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"),
)


def start() -> None:
    """Make this process answer a user's mistakes in one line: error hook, fewer warnings, check of the overrides.

    Raises:
        InputError: for a setting on the command line that no config knows.
    """
    install_error_hook()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that is no UTF-8 must not stop a run that prints it
        sys.stdout.reconfigure(errors="backslashreplace")
    for category, message in THIRD_PARTY_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("monai.bundle.scripts").setLevel(logging.WARNING)  # repeats the command's arguments
    check_overrides()
    track_undecollated_loss()


def check_held_out(scans: UnlabeledScans) -> None:
    """Some scans must be held out: the best file of a pretraining is the one with the lowest loss on them.

    Raises:
        InputError: none are.
    """
    if not scans.validation:
        raise InputError(
            f"no scan of {scans.source} is held out, but the best epoch is chosen on held-out scans; give two scans or "
            "more, and --validation_fraction above 0"
        )


def check_device(device: torch.device | str) -> None:
    """The device must be there and work.

    Raises:
        InputError: it is not, or does not.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device '{device}' cannot be used ({reason}); give --device cpu, or another") from error
