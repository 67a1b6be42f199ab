"""The scans without labels that a fine-tuning learns from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from samora_monai.data import Cases, LoadUnlabeledd, ScaleUnlabeledd, ScanScaling, SliceDataset, find_unlabeled
from samora_monai.data.datalist import DEFAULT_DATALIST
from samora_monai.data.modality import check_modality
from samora_monai.data.scans import absolute, find_copy
from samora_monai.data.unlabeled import format_of
from samora_monai.errors import InputError
from samora_monai.semi_supervised.two_views import TwoViews

DECAY = 0.99  # of BCP
Unlabeled = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | bool | None


def default_decay(unlabeled: Unlabeled) -> float | None:
    """Return the decay of the mean teacher, which only a run with unlabelled scans needs."""
    return None if _is_off(unlabeled) else DECAY


def unlabeled_slices(
    unlabeled: Unlabeled,
    cases: Cases,
    dataset_dir: str | os.PathLike[str],
    datalist: str | os.PathLike[str],
    scaling: ScanScaling,
    transforms: Sequence[Callable],
    **options: Any,
) -> SliceDataset | None:
    """Return the slices of unlabelled scans in two views, scaled and cut as the labelled ones; None without such scans.

    Args:
        unlabeled, cases, dataset_dir, datalist: as in `unlabeled_scans`.
        transforms: random transforms of the labelled slices, see `TwoViews`.
        options: of `SliceDataset`.

    Raises:
        MissingFileError, InputError: as `unlabeled_scans` and `SliceDataset`.
    """
    if _is_off(unlabeled):
        return None
    return SliceDataset(
        unlabeled_scans(unlabeled, cases, dataset_dir, datalist, scaling.modality),
        transform=[LoadUnlabeledd("image", slice_axis=scaling.slice_axis), ScaleUnlabeledd("image", scaling)],
        slice_transform=TwoViews(transforms),
        cache_key=repr((scaling, "image", None)),  # that of stage 1, so that both can share a folder
        **options,
    )


def unlabeled_scans(
    unlabeled: Unlabeled,
    cases: Cases,
    dataset_dir: str | os.PathLike[str],
    datalist: str | os.PathLike[str],
    modality: str,
) -> list[dict[str, str]]:
    """Find scans for training without labels, apart from those that the run trains or validates with.

    Args:
        unlabeled: true for the list `unlabeled` of the run's own datalist; or a root or several of `find_unlabeled`, of
            which nothing is held out but what a datalist or a folder `imagesVal` holds out. The data folder itself can
            be one: its training scans beyond `num_labeled` are then taken without their labels.
        cases: the cases of the run.
        dataset_dir, datalist: of the run.
        modality: of the run.

    Returns:
        `{"image": absolute path, "format": one of FORMATS}` for each scan, sorted by path.

    Raises:
        MissingFileError: a root or a listed file does not exist.
        InputError: nothing is left; a scan is a copy of one for validation; a datalist states another modality.
    """
    images: set[str] = set()
    if str(unlabeled).lower() == "true":
        source, images = cases.source, {case["image"] for case in cases.unlabeled}
    else:
        roots = [unlabeled] if isinstance(unlabeled, str | os.PathLike) else list(unlabeled or ())  # type: ignore[arg-type]
        source = ", ".join(str(root) for root in roots)
        for root in roots:
            own = absolute(root) == absolute(dataset_dir)
            found = find_unlabeled(root, datalist if own else DEFAULT_DATALIST, validation_fraction=0)
            check_modality(found, modality)
            images |= {item["image"] for item in found.training}
    with_label = {os.path.realpath(case["image"]) for case in (*cases.training, *cases.validation)}
    left = {real: image for image in images if (real := os.path.realpath(image)) not in with_label}
    if not left:
        raise InputError(
            f"'{source}' has no scan without a label for this run; give --unlabeled FOLDER with other scans, or a "
            "datalist with a list 'unlabeled' and --unlabeled true"
        )
    if pair := find_copy(list(left.values()), [case["image"] for case in cases.validation]):
        raise InputError(f"'{pair[0]}' of the unlabelled scans is a copy of '{pair[1]}' in validation; remove one")
    return [{"image": image, "format": format_of(image)} for image in sorted(left.values())]


def _is_off(unlabeled: Unlabeled) -> bool:
    return unlabeled is None or str(unlabeled).lower() in ("", "false", "none", "null")
