"""Parts of the expert bundles' configs: checks at the start, and the evaluator of the held-out scans."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.metrics import Loss
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys as Keys
from monai.utils import set_determinism

from samora_monai.data import UnlabeledScans, check_modality, check_output_dir
from samora_monai.errors import InputError
from samora_monai.inference import AutocastInferer
from samora_monai.settings import check_run_settings


def prepare_pretraining(scans: UnlabeledScans, modality: str, output_dir: str, seed: int, **settings: Any) -> None:
    """Check the settings of a pretraining, and seed the initial weights alike in all processes.

    Call it after `start`: a config evaluates `scans` before the call, and the error must be one line.

    Raises:
        InputError: no scan is held out; another modality than that of the datalist; `output_dir` is not writable; one
            of `settings` is out of range, see `check_run_settings`.
    """
    check_run_settings(seed=seed, **settings)
    if not scans.validation:
        raise InputError(
            f"no scan of {scans.source} is held out, but the best epoch is chosen on held-out scans; give two scans or "
            "more, and --validation_fraction above 0"
        )
    check_modality(scans, modality)
    check_output_dir(output_dir)
    set_determinism(seed)


def check_not_given(**settings: Any) -> None:
    """Raise an `InputError` for a setting of the expert that was given to its teacher, whose config has None there."""
    for name, value in settings.items():
        if value is not None:
            raise InputError(f"--{name} {value} has no meaning for a teacher; leave it out")


class PretrainingEvaluator(SupervisedEvaluator):
    """Evaluator whose key metric, `val_loss`, is the mean loss of the held-out slices.

    Does not decollate. Computes in bfloat16 under amp.

    Args:
        loss_function: of the prediction and the label; without a label, of the prediction and the image.
        metric_cmp_fn: whether a loss is better than the best so far; lower is better by default.
        settings: of `SupervisedEvaluator`.
    """

    def __init__(
        self,
        loss_function: Callable,
        device: torch.device | str,
        amp: bool | str = False,
        metric_cmp_fn: Callable[[float, float], bool] = operator.lt,
        **settings: Any,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            inferer=AutocastInferer(amp),
            key_val_metric={"val_loss": Loss(loss_function, output_transform=_pred_and_target, device=device)},
            metric_cmp_fn=metric_cmp_fn,
            decollate=False,
            **settings,
        )


def _pred_and_target(output: Mapping[str, Any]) -> tuple[Any, torch.Tensor]:
    label = output.get(Keys.LABEL)
    return output[Keys.PRED], output[Keys.IMAGE] if label is None else label
