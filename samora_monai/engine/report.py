"""The result of an evaluation: a line per case, a table per class, and both as CSV files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ignite.engine import Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from monai.utils import ImageMetaKey

from samora_monai.data.scans import case_name
from samora_monai.engine.distributed import gather, is_main_process
from samora_monai.errors import InputError
from samora_monai.metrics import ClassMetrics, case_metrics
from samora_monai.replacing import replacing

MEASURES = ("dice", "hd95_mm", "hd95_voxels", "samed_dice", "samed_hd95")


class ClassSummary(NamedTuple):
    """Means over the cases of one class; NaN values of single cases are left out."""

    name: str
    cases: int  # with this class in the reference
    missed: int  # of these, nothing predicted
    false_alarms: int  # predicted, but not in the reference
    means: dict[str, float]


class CaseReport:
    """Evaluator handler that measures every case and writes `metrics.csv` and `summary.csv`.

    The engine's decollated output holds per case the label maps `pred` and `label`, [1, X, Y, Z] on one grid whose axes
    are those of the label's affine, and `image` with the file name in its meta data. In a distributed run all ranks
    measure their cases and rank 0 writes; a case that a sampler repeated counts once.

    Args:
        output_dir: folder of the files, made if needed.
        class_names: in the order of the label values, background first.
    """

    def __init__(self, output_dir: str | os.PathLike, class_names: Sequence[str]) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = list(class_names)
        self.rows: dict[str, list[ClassMetrics]] = {}  # by path of the image

    def attach(self, engine: Evaluator) -> None:
        """Report on the cases of `engine`.

        Raises:
            InputError: if this process has no case to measure, on which the others would wait for ever.
        """
        if engine.state.epoch_length == 0:
            raise InputError("there are fewer cases than processes, or none; start at most one process per case")
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Evaluator) -> None:
        self.rows = {}

    def _measure(self, engine: Evaluator) -> None:
        for item in engine.state.output:
            path = str(item[Keys.IMAGE].meta[ImageMetaKey.FILENAME_OR_OBJ])
            pred, label = item[Keys.PRED], item[Keys.LABEL]
            _check(path, pred, label)
            spacing = affine_to_spacing(label.affine, label.ndim - 1).tolist()
            rows = case_metrics(pred[0], label[0], len(self.class_names), spacing)
            self.rows[path] = rows
            dice = "  ".join(f"{self.class_names[row.class_index]} {_number(row.dice, 3)}" for row in rows)
            print(f"{case_name(path)}  mean Dice {_number(_mean(row.dice for row in rows), 3)}  ({dice})", flush=True)

    def _completed(self, engine: Evaluator) -> None:
        gathered = {path: rows for part in gather(self.rows) for path, rows in part.items()}
        if not is_main_process():
            return
        cases = dict(sorted(zip(_unique_names(list(gathered)), gathered.values(), strict=True)))
        summaries = summarize(cases, self.class_names)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        _write_csv(self.output_dir / "metrics.csv", _case_table(cases, self.class_names))
        _write_csv(self.output_dir / "summary.csv", _summary_table(summaries))
        print(_printed_table(summaries))
        print(f"{len(cases)} cases; details in {self.output_dir / 'metrics.csv'}", flush=True)


def summarize(cases: dict[str, list[ClassMetrics]], class_names: Sequence[str]) -> list[ClassSummary]:
    """Means over the cases for each foreground class, and last the mean of these means, named `mean`.

    The SAMed measures have no NaN, so their means are over all cases, as in the reference.
    """
    summaries = []
    for index, name in enumerate(class_names[1:], 1):
        rows = [row for rows in cases.values() for row in rows if row.class_index == index]
        present = [row for row in rows if not np.isnan(row.dice)]
        missed = sum(row.dice == 0 and np.isnan(row.hd95_voxels) for row in present)
        false_alarms = sum(np.isnan(row.dice) and row.samed_dice == 1 for row in rows)
        means = {measure: _mean(getattr(row, measure) for row in rows) for measure in MEASURES}
        summaries.append(ClassSummary(name, len(present), missed, false_alarms, means))
    means = {measure: _mean(s.means[measure] for s in summaries) for measure in MEASURES}
    total = (sum(s.cases for s in summaries), sum(s.missed for s in summaries), sum(s.false_alarms for s in summaries))
    return [*summaries, ClassSummary("mean", *total, means)]


def _check(path: str, pred: Any, label: Any) -> None:
    if not isinstance(label, MetaTensor):
        raise InputError(f"the label of '{path}' has no affine (got {type(label).__name__}); read it with LoadImaged")
    if pred.shape != label.shape or label.shape[0] != 1:
        raise InputError(
            f"prediction {list(pred.shape)} and label {list(label.shape)} of '{path}' must both be label maps "
            "[1, X, Y, Z] on one grid; take argmax and invert the transforms before the report"
        )


def _unique_names(paths: list[str]) -> list[str]:
    # case names; where two agree, with as many parent folders as it takes
    names, depth = [case_name(path) for path in paths], 1
    while len(set(names)) < len(names):
        names = [
            "/".join((*Path(path).parts[-1 - depth : -1], case_name(path))) if names.count(name) > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
        depth += 1
    return names


def _case_table(cases: dict[str, list[ClassMetrics]], class_names: Sequence[str]) -> list[list[str]]:
    table = [["case", "class", "name", *MEASURES]]
    for case, rows in cases.items():
        for row in rows:
            values = [_number(getattr(row, measure), 6) for measure in MEASURES]
            table.append([case, str(row.class_index), class_names[row.class_index], *values])
    return table


def _summary_table(summaries: list[ClassSummary], digits: int = 6) -> list[list[str]]:
    table = [["name", "cases", "missed", "false_alarms", *MEASURES]]
    for s in summaries:
        counts = [str(s.cases), str(s.missed), str(s.false_alarms)]
        table.append([s.name, *counts, *(_number(s.means[measure], digits) for measure in MEASURES)])
    return table


def _printed_table(summaries: list[ClassSummary]) -> str:
    table = _summary_table(summaries, 3)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return "\n".join([*lines[:-1], "-" * len(lines[0]), lines[-1]])


def _write_csv(path: Path, table: list[list[str]]) -> None:
    with replacing(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)


def _number(value: float, digits: int) -> str:
    return "nan" if np.isnan(value) else f"{value:.{digits}f}"


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if not np.isnan(value)]
    return float(np.mean(finite)) if finite else float("nan")
