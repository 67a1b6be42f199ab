"""The CSV of a grid, one row per scoring of a cell; replaced atomically, so that a killed run leaves it whole."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fewshot.grid import Cell
from samora_monai.errors import InputError
from samora_monai.replacing import replacing

KEY = ("system", "ablation", "labeled", "seed")
FIRST = (*KEY, "fraction", "steps")
LAST = ("hd95_voxels", "seconds", "cpu_seconds", "memory_mb", "device", "versions", "settings")


class Results:
    """The rows that were measured, in memory and in the file.

    Args:
        path: CSV file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_rows(path)
        self._lock = threading.Lock()

    def has(self, cell: Cell, settings: Mapping[str, Any]) -> bool:
        """Whether the file holds this cell.

        Raises:
            InputError: the file holds the cell with other settings; the table would mix two grids.
        """
        found = [row for row in self.rows if key_of(row) == key_of(_key_columns(cell))]
        for row in found:
            if row["settings"] != written(settings):
                old = json.loads(row["settings"])
                names = sorted(name for name in old | dict(settings) if old.get(name) != settings.get(name))
                raise InputError(
                    f"'{self.path}' has {cell.name} with other settings ({', '.join(names)}); give another --folder"
                )
        return bool(found)

    def add(self, cell: Cell, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add all rows of a finished cell at once."""
        with self._lock:
            for row in rows:
                text = {key: str(value) for key, value in (_key_columns(cell) | dict(row)).items()}
                self.rows.append(text)
            columns = _columns(self.rows)
            with replacing(self.path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(self.rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV as text; none if the file does not exist.

    Raises:
        InputError: it is not a CSV of this study.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if missing := [name for name in (*FIRST, *LAST) if name not in (reader.fieldnames or ())]:
        raise InputError(
            f"'{path}' has no column {missing[0]!r}, so it is not a result of this study; give another --folder"
        )
    return rows


def key_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that identify a cell."""
    return tuple(str(row[name]) for name in KEY)


def written(settings: Mapping[str, Any]) -> str:
    """Settings as text of the CSV."""
    return json.dumps(dict(settings), sort_keys=True, default=str)


def _key_columns(cell: Cell) -> dict[str, Any]:
    return {"system": cell.system, "ablation": cell.ablation, "labeled": cell.labeled, "seed": cell.seed}


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The fixed columns around the Dice of each class and their mean."""
    dice = dict.fromkeys(name for row in rows for name in row if name not in FIRST and name not in LAST)
    return [*FIRST, *dice, *LAST]
