"""The first expression of every bundle's `initialize`.

imports:
- $import samora_monai.engine.startup as startup
initialize:
- $startup.start()
"""

from __future__ import annotations

import logging
import warnings

from samora_monai.engine.error_hook import install_error_hook
from samora_monai.engine.overrides import check_overrides

# Warnings about code of MONAI that neither a user nor a config can change
THIRD_PARTY_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # monai.engines.Trainer.run with amp
    (FutureWarning, r"`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated"),
    # monai.metrics.compute_hausdorff_distance, about its own call
    (FutureWarning, r".*get_mask_edges:always_return_as_numpy"),
    # torch, when the scaler of float16 training skips its first step, as it is meant to
    (UserWarning, r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"),
)


def start() -> None:
    """Make this process answer a user's mistakes in one line: error hook, fewer warnings, check of the overrides.

    Raises:
        InputError: for a setting on the command line that no config knows.
    """
    install_error_hook()
    for category, message in THIRD_PARTY_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    logging.getLogger("monai.bundle.scripts").setLevel(logging.WARNING)  # repeats the command's arguments
    check_overrides()
