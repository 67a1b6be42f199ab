"""What a training is about: the scans of a data set from the start, or given lists of scans on top of a trained model.

MONAI Label overrides `train::dataset::data` and `validate::dataset::data` with lists of the studies that have a label,
and means that the model it serves goes on learning. There is no `dataset_dir` then: the model's own settings say which
classes and which network it has, and its file holds every weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samora_monai.checkpoints.settings import read_settings
from samora_monai.data.datalist import Cases
from samora_monai.data.run_cases import CaseList, given_cases


@dataclass(frozen=True)
class Origin:
    """What `origin_of` found.

    Args:
        cases: the scans that are trained and validated on.
        model: file of the model to go on with; `None` starts from SAM.
    """

    cases: Cases
    model: str | None


def origin_of(
    training: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    checkpoint: str | os.PathLike[str],
) -> Origin:
    """Tells the two kinds of training apart by their list of scans.

    Args:
        training: a `CaseList`, or a list that was given in its place.
        validation: the scans of the validation.
        checkpoint: the bundle's model; if there is one, it is what given lists go on with.

    Raises:
        MissingFileError, InputError: as `given_cases`; the model has no settings beside it.
    """
    if isinstance(training, CaseList):
        return Origin(training.cases, None)
    if not os.path.isfile(checkpoint):
        return Origin(given_cases(training, validation), None)
    settings = read_settings(checkpoint)
    cases = given_cases(training, validation, settings.get("class_names"), settings.get("modality"))
    return Origin(cases, str(checkpoint))


def settings_of(origin: Origin, **settings: Any) -> dict[str, Any]:
    """The settings of the model that a run trains: of the one it goes on with, or `settings` as they are given."""
    return settings if origin.model is None else read_settings(origin.model, **settings)
