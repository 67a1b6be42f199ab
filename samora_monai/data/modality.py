"""The modality of scans: CT in Hounsfield units, or MR on an arbitrary scale."""

from __future__ import annotations

from typing import Protocol

from samora_monai.errors import InputError

MODALITIES = ("CT", "MR")


class Stated(Protocol):
    """A set of scans that may state its modality: `Cases` or `UnlabeledScans`."""

    @property
    def modality(self) -> str | None: ...

    @property
    def source(self) -> str: ...


def check_known_modality(modality: str) -> None:
    """Raise an `InputError` unless `modality` is `"CT"` or `"MR"`."""
    if modality not in MODALITIES:
        raise InputError(f"modality must be 'CT' or 'MR', got {modality!r}; use --modality CT or --modality MR")


def check_modality(cases: Stated, modality: str) -> None:
    """Raise an `InputError` if the datalist states another modality than the setting `modality`."""
    check_known_modality(modality)
    if cases.modality not in (None, modality):
        raise InputError(
            f"'{cases.source}' says that the scans are {cases.modality}, but modality is {modality}; "
            f"use --modality {cases.modality}"
        )
