"""The cases of a run: those of a data set, or lists of scans that were given in their place.

A bundle reads its data set through `train::dataset::data` alone. MONAI Label puts a list of its own there, and then
nothing may look for a data set that does not exist.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from samora_monai.data.datalist import DEFAULT_DATALIST, Cases, check_files, find_cases
from samora_monai.data.scans import absolute
from samora_monai.errors import InputError

_GIVEN = "the lists of scans that were given"


class CaseList(list[dict[str, str]]):
    """The training scans of a data set, as a list that remembers the rest of it.

    Args:
        cases: the data set.
    """

    def __init__(self, cases: Cases) -> None:
        super().__init__(cases.training)
        self.cases = cases


def find_training(
    dataset_dir: str | os.PathLike, datalist: str | os.PathLike = DEFAULT_DATALIST, num_labeled: int | None = None
) -> CaseList:
    """The training scans of `find_cases`, as a list that `cases_of` knows."""
    return CaseList(find_cases(dataset_dir, datalist, num_labeled))


def cases_of(training: Sequence[Mapping[str, str]]) -> Cases:
    """The data set that a list of `find_training` is of; a nameless one of any other list."""
    if isinstance(training, CaseList):
        return training.cases
    return Cases(tuple(dict(scan) for scan in training), (), (), None, None, _GIVEN)


def given_cases(
    training: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    class_names: Sequence[str] | None = None,
    modality: str | None = None,
) -> Cases:
    """Two lists of `{"image": path, "label": path}` as the cases of a data set.

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
    return Cases(
        training=tuple(lists["training"]),
        validation=tuple(lists["validation"]),
        unlabeled=(),
        class_names=None if class_names is None else tuple(class_names),
        modality=modality,
        source=_GIVEN,
    )
