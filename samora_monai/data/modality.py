"""The modality of scans: CT in Hounsfield units, or MR on an arbitrary scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samora_monai.errors import InputError

if TYPE_CHECKING:
    from samora_monai.data.datalist import Cases
    from samora_monai.data.unlabeled import UnlabeledScans

SUGGESTED_MODALITY = "suggested_modality"  # key in the metadata of a scan whose values suggest the other modality
_AIR = -500  # HU; the air around the patient is near -1000


def check_known_modality(modality: str) -> None:
    """Raise an `InputError` unless `modality` is `"CT"` or `"MR"`."""
    if modality not in ("CT", "MR"):
        raise InputError(f"modality must be 'CT' or 'MR', got {modality!r}; use --modality CT or --modality MR")


def check_modality(cases: Cases | UnlabeledScans, modality: str) -> None:
    """Raise an `InputError` if the datalist states another modality than the setting `modality`."""
    check_known_modality(modality)
    if cases.modality not in (None, modality):
        raise InputError(
            f"'{cases.source}' states that the scans are {cases.modality}, but modality is {modality}; "
            f"use --modality {cases.modality}"
        )


def suggested_modality(modality: str, lowest: float) -> str | None:
    """Return the other modality if the lowest value of a scan suggests it: MR from 0 up, CT below -500; else None."""
    if modality == "CT":
        return "MR" if lowest >= 0 else None
    return "CT" if lowest < _AIR else None


def modality_warning(suggested: str, num_scans: int) -> str:
    """Return a warning that the values of all scans suggest another modality than the setting."""
    if suggested == "CT":
        setting, reason = "MR", f"values are below {_AIR} in each of {num_scans} scans"
    else:
        setting, reason = "CT", f"no value is below 0 in {num_scans} scans"
    return f"values look like {suggested} ({reason}), but modality is {setting}; use --modality {suggested}"
