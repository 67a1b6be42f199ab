"""What follows from the scans: modality, window, slice axis, classes, scans to hold out, size of the slices.

Each decision is returned with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from samora_monai.data.classes import MAX_CLASSES
from samora_monai.data.datalist import Cases
from samora_monai.data.modality import check_known_modality, suggested_modality
from samora_monai.data.scaling import ScanScaling
from samora_monai.data.scans import find_copy
from samora_monai.errors import InputError
from samora_monai.pipeline.planning.look import ScanFacts
from samora_monai.pipeline.recipes import SMOOTHING
from samora_monai.selection.patients import patients_of

AXES = ("sagittal", "coronal", "axial")
STEP = 32  # pixels; the sides of an input are multiples of it
_FEWEST_LABELS = 2  # that show a class in one piece
_THICK = 1.1  # a spacing is the largest one if it is this many times the second
_FAT = -50  # HU; below the lowest value of a normalised MR scan
_HELD_OUT = 4  # one of so many labelled scans is held out
_ENOUGH = 3  # labelled scans from which on some are held out


def choose_modality(facts: Sequence[ScanFacts], cases: Cases, given: str | None) -> tuple[str, str, list[str]]:
    """Return the modality, the reason, and notes on scans that look like another.

    Raises:
        InputError: the scans are of two modalities, or of another than CT and MR.
    """
    if given is not None:
        check_known_modality(given)
    seen: dict[str, list[tuple[ScanFacts, str]]] = {}
    for scan in facts:
        if found := _evidence(scan):
            seen.setdefault(found[0], []).append((scan, found[1]))
    if given is not None:
        others = [example for name, examples in seen.items() if name != given for example in examples]
        notes = [f"'{scan.image}' looks as if it were no {given} scan: {why}" for scan, why in others[:3]]
        if len(others) > 3:
            notes.append(f"and so do {len(others) - 3} more scans")
        return given, "given with --modality", notes
    if other := next((name for name in seen if name not in ("CT", "MR")), None):
        raise InputError(f"'{seen[other][0][0].image}' is a scan of modality {other}, expected CT or MR; remove it")
    if cases.modality:
        seen.pop(cases.modality, None)
        if seen:
            (name, [(scan, why), *_]), *_ = seen.items()
            raise InputError(
                f"'{cases.source}' states that the scans are {cases.modality}, but '{scan.image}' looks like {name} "
                f"({why}); remove the scans of the other modality, or give --modality {cases.modality} if they are none"
            )
        return cases.modality, f"stated by '{cases.source}'", []
    if len(seen) == 2:
        texts = [f"'{seen[name][0][0].image}' looks like {name} ({seen[name][0][1]})" for name in ("CT", "MR")]
        raise InputError(
            f"'{cases.source}' holds scans of two modalities: {' but '.join(texts)}; give each a folder of its own, or "
            "state the one of all scans with --modality CT or --modality MR"
        )
    if seen:
        (name, examples), *_ = seen.items()
        return name, f"{examples[0][1]} in {len(examples)} of {len(facts)} scans; another with --modality", []
    lowest = median(scan.lowest for scan in facts if scan.is_volume)
    name, than = ("CT", "below") if lowest < _FAT else ("MR", "not below")
    return name, f"not stated; the lowest value is {lowest:g}, {than} {_FAT}; check it, another with --modality", []


def _evidence(scan: ScanFacts) -> tuple[str, str] | None:
    """The modality that a scan is plainly of, and why."""
    if not scan.is_volume:
        return None  # pictures and arrays are scaled by their own values
    if scan.modality:
        return scan.modality, "DICOM header"
    if suggested_modality("MR", scan.lowest) == "CT":
        return "CT", f"lowest value {scan.lowest:g}, as of air in Hounsfield units"
    if suggested_modality("CT", scan.lowest) == "MR":
        return "MR", f"lowest value {scan.lowest:g}, so no Hounsfield units"
    return None


def choose_scaling(modality: str, facts: Sequence[ScanFacts]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return `window` and `percentiles`, and the reason for each."""
    default = ScanScaling()
    values: dict[str, Any] = {"window": list(default.window), "percentiles": list(default.percentiles)}
    unused = {"window": "not used: for CT only", "percentiles": "not used: for MR and wide integers in pictures only"}
    if modality == "MR":
        return values, unused | {"percentiles": "of each scan; they become 0 and 1, as MR has no fixed units"}
    reason = "Hounsfield units that become 0 and 1: SAMed's for the abdomen"
    labelled = [scan.foreground for scan in facts if scan.foreground]
    low, high = min(pair[0] for pair in labelled), max(pair[1] for pair in labelled)
    if low < default.window[0] or high > default.window[1]:
        wide = [
            min(default.window[0], 25 * int(np.floor(low / 25))),
            max(default.window[1], 25 * int(np.ceil(high / 25))),
        ]
        values["window"] = wide
        reason += f", widened to the labelled voxels (5 to 95 % of them are in {low:.0f} to {high:.0f})"
    return values, unused | {"window": reason}


def choose_postprocessing(labelled: Sequence[ScanFacts]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return `smoothing` and `largest_component`, and the reason for each."""
    values = sorted({value for scan in labelled for value in scan.label_values or () if value})
    of_class = {value: [scan for scan in labelled if value in (scan.label_values or ())] for value in values}
    whole = [value for value in values if all(value in scan.in_one_piece for scan in of_class[value])]
    enough = [value for value in whole if len(of_class[value]) >= _FEWEST_LABELS]
    reasons = {
        "smoothing": "mm over which predictions of neighbouring slices are averaged; thick slices stay as they are",
        "largest_component": f"classes in one piece in each of at least {_FEWEST_LABELS} labels; keep the largest",
    }
    return {"smoothing": SMOOTHING, "largest_component": enough}, reasons


def choose_slice_axis(facts: Sequence[ScanFacts]) -> tuple[int, str]:
    """Return the axis of the largest spacing, that of most scans; isotropic scans count as axial."""
    votes = Counter(_thickest(scan.spacing) for scan in facts if scan.spacing)
    axis = max(votes, key=lambda axis: (votes[axis], axis))
    spacings = [scan.spacing for scan in facts if scan.spacing and _thickest(scan.spacing) == axis]
    typical = " x ".join(f"{median(spacing[i] for spacing in spacings):.3g}" for i in range(3))
    return (
        axis,
        f"{AXES[axis]}: the largest spacing, or equal ones, in {votes[axis]} of {votes.total()} scans ({typical} mm)",
    )


def _thickest(spacing: Sequence[float]) -> int:
    *_, second, largest = sorted(spacing)
    return list(spacing).index(largest) if largest > _THICK * second else 2


def choose_classes(labelled: Sequence[ScanFacts], cases: Cases) -> tuple[list[str], str]:
    """Return the names of the classes, background first, and the reason.

    Raises:
        InputError: a label has a value without a name; the values have more gaps than classes; nothing is labelled.
    """
    found = sorted({value for scan in labelled for value in scan.label_values or () if value > 0})
    if not found:
        raise InputError(f"no label in '{cases.source}' has a voxel above 0; label at least one scan")
    if cases.class_names is not None:
        highest = len(cases.class_names) - 1
        if found[-1] > highest:
            scan = next(scan for scan in labelled if found[-1] in (scan.label_values or ()))
            raise InputError(
                f"the label of '{scan.image}' has the value {found[-1]}, but '{cases.source}' names only the values "
                f"0 to {highest}; name it there or renumber the label"
            )
        absent = [name for value, name in enumerate(cases.class_names) if value and value not in found]
        rest = f"; no label holds {', '.join(absent)}" if absent else ""
        return list(cases.class_names), f"stated by '{cases.source}', background first{rest}"
    gaps = found[-1] - len(found)
    if found[-1] >= MAX_CLASSES or gaps > len(found):
        values = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        raise InputError(
            f"the labels in '{cases.source}' have the values 0, {values}, expected 0, 1, 2, ...; renumber them without "
            "gaps, so that no class is empty"
        )
    names = ["background", *(f"class_{value}" for value in range(1, found[-1] + 1))]
    absent = [names[value] for value in range(1, found[-1]) if value not in found]
    rest = f"; no label holds {', '.join(absent)}" if absent else ""
    return names, f"{len(found)} values in the labels; put their names here, background first{rest}"


def hold_out(
    cases: Cases, seed: int, classes: Mapping[str, frozenset[int]]
) -> tuple[dict[str, list[dict[str, str]]], str]:
    """Return the lists `training`, `validation` and `unlabeled`, and a note on the validation scans.

    All scans of a patient are in the same list, and each class that occurs is in a training scan.

    Args:
        seed: of the choice, where the data do not say which scans are for validation.
        classes: the label values of each labelled scan, by its image.

    Raises:
        InputError: of the scans to choose from, one is a copy of another.
    """
    training, validation = list(cases.training), list(cases.validation)
    lists = {"training": training, "validation": validation, "unlabeled": list(cases.unlabeled)}
    if validation:
        return lists, f"{len(validation)} labelled scans are for validation, as '{cases.source}' says"
    images = [case["image"] for case in training]
    if copy := next((pair for i in range(1, len(images)) if (pair := find_copy(images[:i], images[i : i + 1]))), None):
        raise InputError(
            f"'{copy[1]}' is a copy of '{copy[0]}', but each labelled scan counts once; remove one of them"
        )
    unknown = "the Dice that is reported is that on the training scans, and does not tell how well others are segmented"
    if len(training) < _ENOUGH:
        count = f"{len(training)} labelled {'scan' if len(training) == 1 else 'scans'}"
        return lists, f"only {count}, so none is held out: {unknown}"
    source = Path(cases.source)
    owners = patients_of(images, source.parent if source.is_file() else source)
    patients = list(dict.fromkeys(owners))
    if len(patients) == 1:  # names that tell nothing
        owners = patients = images
    held_out: list[str] = []
    for i in np.random.default_rng(seed).permutation(len(patients)):
        rest = [image for image, owner in zip(images, owners, strict=True) if owner not in (*held_out, patients[i])]
        own = [image for image, owner in zip(images, owners, strict=True) if owner == patients[i]]
        needed, covered = (set[int]().union(*(classes[image] for image in part)) for part in (own, rest))
        if len(held_out) < max(1, round(len(patients) / _HELD_OUT)) and needed <= covered:
            held_out.append(patients[i])
    if not held_out:
        return lists, f"each labelled scan has a class that no other has, so none is held out: {unknown}"
    lists["validation"] = [case for case, owner in zip(training, owners, strict=True) if owner in held_out]
    lists["training"] = [case for case, owner in zip(training, owners, strict=True) if owner not in held_out]
    count = f"{len(lists['validation'])} of {len(training)}"
    return lists, f"{count} labelled scans are held out for validation, chosen by the seed {seed}"


def plane(scan: ScanFacts, axis: int) -> tuple[int, int]:
    """Size in pixels of the slices of a scan."""
    one, other = (side for i, side in enumerate(scan.shape) if i != (axis if scan.is_volume else 2))
    return one, other


def num_slices(scan: ScanFacts, axis: int) -> int:
    """Number of slices of a scan."""
    return scan.shape[axis if scan.is_volume else 2]


def choose_image_size(labelled: Sequence[ScanFacts], axis: int, lowest: int, highest: int) -> tuple[int, str]:
    """Return the size of the network's input within limits, which suit the base, and the reason."""
    side = round(median(max(plane(scan, axis)) for scan in labelled))
    size = min(max(STEP * round(side / STEP), lowest), highest)
    return size, f"slices have {side} (median of the longer side), and {lowest} to {highest} suit this base"
