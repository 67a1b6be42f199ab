"""The cases of a run, and the settings of the model that it trains.

MONAI Label overrides `train::dataset::data` and `validate::dataset::data` with lists of the studies that have a label,
and expects the model that it serves to be trained further. There is no `dataset_dir` then: the model's own settings
state its classes and its network, and its file holds every weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samora_monai.checkpoints.model_settings import ModelSettings, read_model_settings
from samora_monai.data.classes import resolve_class_names
from samora_monai.data.data_set import DataSet
from samora_monai.data.datalist import Cases, check_files
from samora_monai.data.scans import absolute
from samora_monai.errors import InputError

_GIVEN = "the lists of scans that were given"
Scans = Sequence[Mapping[str, str]]  # {"image": path, "label": path} each


@dataclass(frozen=True)
class RunCases(Cases):
    """The cases of a run, and the trained model that it continues; None starts from SAM."""

    model_file: str | None = None


def resolve_cases(
    data_set: DataSet, training: Scans, validation: Scans, model_file: str | os.PathLike[str]
) -> RunCases:
    """Return the cases of a data set, or lists of scans that were given in its place.

    Args:
        data_set: the data set; it has been read by now unless both lists were given in its place.
        training, validation: the content of `train::dataset::data` and `validate::dataset::data`.
        model_file: the bundle's model; a run on given lists continues with it, if it exists.

    Raises:
        MissingFileError, InputError: as `given_cases`; the model has no settings beside it.
    """
    if data_set.is_read:
        return RunCases(**vars(data_set.cases))
    given = given_cases(training, validation)
    model = read_model_settings(model_file) if os.path.isfile(model_file) else None
    return RunCases(
        training=given["training"],
        validation=given["validation"],
        unlabeled=(),
        class_names=model.class_names if model else None,
        modality=model.scaling.modality if model else None,
        source=_GIVEN,
        model_file=str(model_file) if model else None,
    )


def given_cases(training: Scans, validation: Scans) -> dict[str, tuple[dict[str, str], ...]]:
    """Check two lists of scans, and make their paths absolute.

    Raises:
        MissingFileError: a listed file is missing.
        InputError: a list is empty or has an entry without image or label; a scan is in both.
    """
    lists = {}
    for name, scans in (("training", training), ("validation", validation)):
        if not scans:
            raise InputError(
                f"{_GIVEN} have none for {name}; label more scans, or divide them otherwise (val_split of MONAI Label)"
            )
        for scan in scans:
            if not all(isinstance(scan.get(part), str) for part in ("image", "label")):
                raise InputError(
                    f"{_GIVEN} have {dict(scan)!r:.120} for {name}; expected paths of an image and a label"
                )
        lists[name] = [{part: str(absolute(scan[part])) for part in ("image", "label")} for scan in scans]
    check_files(lists, _GIVEN)
    return {name: tuple(scans) for name, scans in lists.items()}


def model_to_train(
    cases: RunCases,
    network: Mapping[str, Any],
    scaling: Mapping[str, Any],
    classes: Mapping[str, Any],
    postprocessing: Mapping[str, Any],
) -> ModelSettings:
    """Return the settings of the model that a run continues, or the given ones.

    Args:
        network, scaling, postprocessing: fields of `SegmenterConfig`, `ScanScaling` and `Postprocessing`.
        classes: `num_classes` and `class_names`, see `resolve_class_names`.

    Raises:
        InputError: nothing states the classes, or a setting is unknown or out of range.
    """
    if cases.model_file is not None:
        return read_model_settings(cases.model_file)
    names = resolve_class_names(cases, **classes)
    return ModelSettings.from_dict({**network, **scaling, **postprocessing, "class_names": names})
