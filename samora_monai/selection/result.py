"""The chosen scans and what each stands for: lines for a person, a table, and a contact sheet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from samora_monai.errors import InputError
from samora_monai.replacing import replacing
from samora_monai.selection.clusters import Choice, squared_distances
from samora_monai.selection.contact_sheet import Row, save_contact_sheet
from samora_monai.selection.features import ScanFeatures

COLUMNS = ("order", "scan", "patient", "represented_by", "distance", "stands_for", "why")


@dataclass(frozen=True)
class Selection:
    """Scans of a folder, and those that were chosen.

    Args:
        names: path of each scan below the folder.
        patients: name of the patient of each scan.
        features: of each scan.
        embeddings: `[N, D]`.
        labelled, held_out: indices of scans with a label, for training and for validation.
        choices: the chosen scans, the first one to label first.
    """

    names: Sequence[str]
    patients: Sequence[str]
    features: Sequence[ScanFeatures]
    embeddings: np.ndarray
    labelled: Sequence[int]
    held_out: Sequence[int]
    choices: Sequence[Choice]

    @cached_property
    def represented_by(self) -> dict[int, int]:
        """The chosen or labelled scan that stands for each unlabelled one: of its cluster, else the nearest."""
        found = {choice.scan: choice.scan for choice in self.choices}
        for choice in self.choices:
            found |= {scan: choice.scan for scan in choice.cluster if scan not in found}
        known = [*(choice.scan for choice in self.choices), *self.labelled]
        for scan in range(len(self.names)):
            if scan not in found and scan not in known and scan not in self.held_out:
                found[scan] = known[squared_distances(self.embeddings[[scan]], self.embeddings[known])[0].argmin()]
        return found

    def stood_for(self, scan: int) -> list[int]:
        """The unlabelled scans that a chosen or labelled scan stands for, itself included, the nearest first."""
        own = [other for other, by in self.represented_by.items() if by == scan]
        return sorted(own, key=lambda other: (self.distance(other, scan), other))

    def distance(self, scan: int, other: int) -> float:
        """Distance of two scans in the embedding, from 0 to 2."""
        return float(np.linalg.norm(self.embeddings[scan] - self.embeddings[other]))

    def why(self, choice: Choice) -> str:
        """The reason for a choice in a few words."""
        count, total = len(self.stood_for(choice.scan)), len(self.represented_by)
        if choice.looks_like is not None:
            text = f"may be of the patient of {self.names[choice.looks_like]}, but no other scan is left"
        elif choice.outside:
            text = "farthest from all others of patients who have no label yet"
        elif count == 1:
            text = "unlike all others"
        else:
            text = "in the middle of its cluster"
        passed = [f"{self.names[scan]} (patient of {self.names[other]})" for scan, other in choice.passed_over]
        return f"stands for {count} of {total}: {text}" + (f"; instead of {', '.join(passed)}" if passed else "")

    def lines(self) -> Iterator[str]:
        """A line for each chosen scan, and one for the labelled ones."""
        for order, choice in enumerate(self.choices, 1):
            yield f"{order:>3}. {self.names[choice.scan]}  {self.why(choice)}"
        near = sum(by in self.labelled for by in self.represented_by.values())
        if self.labelled:
            yield f"the {len(self.labelled)} labelled scans stand for {near} of {len(self.represented_by)}"

    def write_table(self, path: str | os.PathLike[str]) -> None:
        """Write a row for each scan as CSV: chosen ones, then other unlabelled ones, then labelled ones.

        Raises:
            InputError: the file cannot be written.
        """
        order = {choice.scan: (i, self.why(choice)) for i, choice in enumerate(self.choices, 1)}
        others = [scan for scan in self.represented_by if scan not in order]
        rows = []
        for scan in (*order, *sorted(others), *self.labelled, *self.held_out):
            by = self.represented_by.get(scan)
            name = "" if by is None else self.names[by]
            distance = "" if by is None else f"{self.distance(scan, by):.3f}"
            chosen = scan in order or scan in self.labelled
            if scan in order:
                why = order[scan][1]
            elif by is None:
                why = "labelled" if scan in self.labelled else "labelled, for validation"
            else:
                why = f"like {name}"
            count = len(self.stood_for(scan)) if chosen else ""
            rows.append((order.get(scan, ("",))[0], self.names[scan], self.patients[scan], name, distance, count, why))
        try:
            with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
        except OSError as error:
            raise InputError(f"cannot write '{path}': {error.strerror or error}; choose another --output") from error

    def write_sheet(self, path: str | os.PathLike[str]) -> None:
        """Write the contact sheet: a row for each chosen scan, then the labelled scans and those near them."""
        rows = []
        for order, choice in enumerate(self.choices, 1):
            own = self.stood_for(choice.scan)
            title = f"{order}. label {self.names[choice.scan]}: stands for {len(own)} of {len(self.represented_by)}"
            rows.append(Row(title, self._shown(choice.scan), [self._shown(i) for i in own if i != choice.scan]))
        near = sorted(scan for scan, by in self.represented_by.items() if by in self.labelled)
        for title, scans in (("labelled already", [*self.labelled]), ("near a labelled scan", near)):
            if scans:
                rows.append(Row(f"{title}: {len(scans)}", None, [self._shown(scan) for scan in scans]))
        save_contact_sheet(path, rows, f"{len(self.choices)} scans to label first")

    def _shown(self, scan: int) -> tuple[str, ScanFeatures]:
        return Path(self.names[scan]).name, self.features[scan]
