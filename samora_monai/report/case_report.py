"""The result of an evaluation: a line per case, a table per class, both as CSV files, and a page to hand on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import Evaluator
from monai.utils import CommonKeys as Keys
from monai.utils import ImageMetaKey

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.scans import case_name
from samora_monai.errors import InputError
from samora_monai.metrics import ClassMetrics, case_metrics
from samora_monai.replacing import replacing
from samora_monai.report.case_article import ShownCase
from samora_monai.report.class_summary import mean_dice, summarize
from samora_monai.report.csv_tables import case_table, number, printed_table, summary_table, write_csv
from samora_monai.report.page import report_page
from samora_monai.report.provenance import Provenance
from samora_monai.report.shown_cases import SliceStore, best_median_worst, telling_slices

logger = logging.getLogger(__name__)


class CaseReport:
    """Evaluator handler that measures every case and writes `metrics.csv`, `summary.csv` and `report.html`.

    The engine's decollated output holds per case the label maps `pred` and `label`, [1, X, Y, Z] on one grid whose axes
    are those of the label's affine, and `image`, the scan on this grid in [0, 1], with the file name in its meta data.
    In a distributed run all ranks measure their cases and rank 0 writes; a case that a sampler repeated counts once.

    Args:
        output_dir: folder of the files, made if needed.
        model: settings of the model, which name the classes.
        provenance: the facts about the run that the page lists.
    """

    def __init__(self, output_dir: str | os.PathLike, model: ModelSettings, provenance: Provenance) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = model.class_names
        self.provenance = provenance
        self.facts: dict[str, str] = {}
        self.rows: dict[str, list[ClassMetrics]] = {}  # by path of the image
        self.slices: SliceStore | None = None  # by path too, while the engine runs

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
        self.facts = self.provenance.facts() if idist.get_rank() == 0 else {}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.slices = SliceStore(self.output_dir)

    def _measure(self, engine: Evaluator) -> None:
        assert self.slices is not None
        for item in engine.state.output:
            image, label, pred = item[Keys.IMAGE], item[Keys.LABEL], item[Keys.PRED]
            path = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
            _check(path, image, label, pred)
            spacing = affine_to_spacing(label.affine, label.ndim - 1).tolist()
            rows = case_metrics(pred[0], label[0], len(self.class_names), spacing)
            self.rows[path] = rows
            if not np.isnan(mean_dice(rows)):
                self.slices[path] = telling_slices(image, label, pred, rows)
            dice = "  ".join(f"{self.class_names[row.class_index]} {number(row.dice, 3)}" for row in rows)
            logger.info(f"{_case_name(path)}  mean Dice {number(mean_dice(rows), 3)}  ({dice})")

    def _completed(self, engine: Evaluator) -> None:
        gathered = {path: rows for part in _gather(self.rows) for path, rows in part.items()}
        names = dict(zip(gathered, _unique_names(list(gathered)), strict=True))
        shown = self._shown_cases(gathered, names)
        if idist.get_rank() > 0:
            return
        cases = {names[path]: gathered[path] for path in sorted(gathered, key=names.__getitem__)}
        summaries = summarize(cases, self.class_names)
        write_csv(self.output_dir / "metrics.csv", case_table(cases, self.class_names))
        write_csv(self.output_dir / "summary.csv", summary_table(summaries))
        logger.info(printed_table(summaries))
        page = report_page(cases, summaries, self.class_names, shown, self.facts, self.provenance.model.as_dict())
        with replacing(self.output_dir / "report.html") as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        logger.info(f"{len(cases)} cases; details in {self.output_dir / 'metrics.csv'} and report.html")

    def _shown_cases(self, gathered: Mapping[str, list[ClassMetrics]], names: Mapping[str, str]) -> list[ShownCase]:
        # every rank chooses the same cases, and hands out the slices of those that it has measured
        assert self.slices is not None
        chosen = best_median_worst({path: mean_dice(rows) for path, rows in gathered.items()})
        own = {path: self.slices[path] for path in chosen.values() if path in self.slices}
        self.slices.close()
        self.slices = None
        slices = {path: item for part in _gather(own) for path, item in part.items()}
        return [ShownCase(place, names[path], gathered[path], slices[path]) for place, path in chosen.items()]


def _gather(item: Any) -> list[Any]:
    # of every process, on every process; Ignite's type says less than this
    return cast("list[Any]", idist.all_gather(item))


def _check(path: str, image: Any, label: Any, pred: Any) -> None:
    if not isinstance(label, MetaTensor):
        raise InputError(f"the label of '{path}' has no affine (got {type(label).__name__}); read it with LoadImaged")
    if pred.shape != label.shape or label.shape[0] != 1:
        raise InputError(
            f"prediction {list(pred.shape)} and label {list(label.shape)} of '{path}' must both be label maps "
            "[1, X, Y, Z] on one grid; take argmax and invert the transforms before the report"
        )
    if image.shape != label.shape:
        raise InputError(
            f"image {list(image.shape)} and label {list(label.shape)} of '{path}' must be on one grid; invert the "
            "transforms before the report"
        )


def _case_name(path: str) -> str:
    return _printable(case_name(path))


def _printable(name: str) -> str:
    # bytes of a file name that are not UTF-8 can be opened but neither printed nor written
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _unique_names(paths: list[str]) -> list[str]:
    # case names; where two agree, with as many parent folders as it takes, and x.nii beside x.nii.gz by the whole path
    names = [_case_name(path) for path in paths]
    for depth in range(1, max((len(Path(path).parts) for path in paths), default=0)):
        if len(set(names)) == len(names):
            break
        names = [
            _printable("/".join((*Path(path).parts[-1 - depth : -1], case_name(path))))
            if names.count(name) > 1
            else name
            for path, name in zip(paths, names, strict=True)
        ]
    return [_printable(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
