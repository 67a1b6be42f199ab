"""The plan of a pipeline: the settings of every run of a bundle, with the reason for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEACHERS = ("image_teacher", "patch_teacher")
EXPERTS = ("image_expert", "patch_expert", "pixel_expert")
TRAININGS = (*TEACHERS, *EXPERTS, "fine_tuning")  # runs of a bundle that train


@dataclass(frozen=True)
class Plan:
    """Settings under the names that they have in the bundles, so that each can be given to `monai.bundle run`.

    Args:
        data: settings of the scans for all runs: `modality`, `window`, `percentiles`, `slice_axis`, `class_names`.
        network: settings of the base for all runs that use it: `encoder`, `sam_checkpoint`, `image_size`.
        run: settings of the machine that do not change what a run computes, but for rounding: `device`, `amp`,
            `num_workers`; `jobs` is the number of runs at a time and `threads` the number of threads of each; `hours`
            the time budget; `seed`.
        stages: for each of `TRAININGS` its `steps`, `epochs` (parts of the steps, each of which ends with a
            validation and a checkpoint), `batch_size`, `learning_rate`, `warmup`, and any other setting of that bundle;
            for `inference` `slices_per_pass`.
    """

    data: Mapping[str, Any]
    network: Mapping[str, Any]
    run: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
