"""The result of an evaluation: metrics per case and per class, as CSV files, in the log, and as an HTML page."""

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
from samora_monai.report.case_article import RankedCase
from samora_monai.report.case_slices import SliceStore, select_slices
from samora_monai.report.class_summary import mean_dice, summarize, worst_median_best
from samora_monai.report.csv_tables import aligned_summary, case_table, summary_table, write_csv
from samora_monai.report.page import report_page
from samora_monai.report.provenance import Provenance

logger = logging.getLogger(__name__)


class CaseReport:
    """Evaluator handler that computes the metrics of every case and writes `metrics.csv`, `summary.csv`, `report.html`.

    The engine's decollated output holds per case the label maps `pred` and `label`, [1, X, Y, Z], on the grid of the
    label's affine, and `image`, the scan on this grid, values in [0, 1], with its file name in the metadata.
    In a distributed run each rank evaluates its cases and rank 0 writes; a case that a sampler repeats counts once.

    Args:
        output_dir: folder of the files, created if needed.
        model: settings of the model, which name the classes.
        provenance: facts about the run for the page.
    """

    def __init__(self, output_dir: str | os.PathLike, model: ModelSettings, provenance: Provenance) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = model.class_names
        self.provenance = provenance
        self.facts: dict[str, str] = {}
        self.rows: dict[str, list[ClassMetrics]] = {}  # by path of the scan
        self.slices: SliceStore | None = None  # by path too, during a run

    def attach(self, engine: Evaluator) -> None:
        """Report on the cases of `engine`.

        Raises:
            InputError: this process has no case; the others would wait for it forever.
        """
        if engine.state.epoch_length == 0:
            raise InputError("there are fewer cases than processes, or none; start at most one process per case")
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._evaluate)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Evaluator) -> None:
        self.rows = {}
        self.facts = self.provenance.facts() if idist.get_rank() == 0 else {}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.slices = SliceStore(self.output_dir)

    def _evaluate(self, engine: Evaluator) -> None:
        assert self.slices is not None
        for item in engine.state.output:
            image, label, pred = item[Keys.IMAGE], item[Keys.LABEL], item[Keys.PRED]
            path = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
            _check(path, image, label, pred)
            spacing = affine_to_spacing(label.affine, label.ndim - 1).tolist()
            rows = case_metrics(pred[0], label[0], len(self.class_names), spacing)
            self.rows[path] = rows
            if not np.isnan(mean_dice(rows)):
                self.slices[path] = select_slices(image, label, pred, rows)
            dice = "  ".join(f"{self.class_names[row.class_index]} {row.dice:.3f}" for row in rows)
            logger.info(f"{_printable(case_name(path))}  mean Dice {mean_dice(rows):.3f}  ({dice})")

    def _completed(self, engine: Evaluator) -> None:
        gathered = {path: rows for part in cast(Any, idist.all_gather(self.rows)) for path, rows in part.items()}
        names = dict(zip(gathered, _unique_names(list(gathered)), strict=True))
        shown = self._ranked_cases(gathered, names)
        if idist.get_rank() > 0:
            return
        cases = {names[path]: gathered[path] for path in sorted(gathered, key=names.__getitem__)}
        summaries = summarize(cases, self.class_names)
        write_csv(self.output_dir / "metrics.csv", case_table(cases, self.class_names))
        write_csv(self.output_dir / "summary.csv", summary_table(summaries))
        logger.info(aligned_summary(summaries))
        page = report_page(cases, summaries, self.class_names, shown, self.facts, self.provenance.model.as_dict())
        with replacing(self.output_dir / "report.html") as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        logger.info(f"{len(cases)} cases; details in {self.output_dir / 'metrics.csv'} and report.html")

    def _ranked_cases(self, gathered: Mapping[str, list[ClassMetrics]], names: Mapping[str, str]) -> list[RankedCase]:
        # every rank selects the same cases and provides the slices of those that it has evaluated
        assert self.slices is not None
        ranked = worst_median_best({path: mean_dice(rows) for path, rows in gathered.items()})
        own = {path: self.slices[path] for path in ranked.values() if path in self.slices}
        self.slices.close()
        self.slices = None
        slices = {path: item for part in cast(Any, idist.all_gather(own)) for path, item in part.items()}
        return [RankedCase(rank, names[path], gathered[path], slices[path]) for rank, path in ranked.items()]


def _check(path: str, image: Any, label: Any, pred: Any) -> None:
    if not isinstance(label, MetaTensor):
        raise InputError(f"the label of '{path}' has no affine (got {type(label).__name__}); load it with LoadImaged")
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


def _printable(name: str) -> str:
    # file names that are not UTF-8 can be opened, but neither logged nor written
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _unique_names(paths: list[str]) -> list[str]:
    # case names; equal ones get as many parent folders as needed, and x.nii beside x.nii.gz the whole path
    names = [_printable(case_name(path)) for path in paths]
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
