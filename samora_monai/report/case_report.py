"""The result of an evaluation: metrics per case and per class, as CSV files, in the log, and as an HTML page."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
from ignite.engine import Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import Evaluator
from monai.utils import CommonKeys, ImageMetaKey

from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.scans import case_name
from samora_monai.errors import InputError
from samora_monai.inference.uncertainty import ENTROPY
from samora_monai.metrics import ClassMetrics, case_metrics
from samora_monai.replacing import replacing
from samora_monai.report.case_article import RankedCase
from samora_monai.report.case_slices import SliceStore, select_slices
from samora_monai.report.class_summary import aligned_summary, mean_dice, summarize, worst_median_best, write_tables
from samora_monai.report.confidence import order_sentence
from samora_monai.report.page import report_page
from samora_monai.report.provenance import Provenance

logger = logging.getLogger(__name__)


class CaseReport:
    """Evaluator handler that computes the metrics of every case and writes the CSV files and `report.html`.

    The engine's decollated output holds per case the label maps `pred` and `label`, [1, X, Y, Z], on the grid of the
    label's affine, and `image`, the scan on this grid, values in [0, 1], with its file name in the metadata. The
    metadata of `pred` hold its `FoundEntropy`; without it, the entropy is NaN.
    In a distributed run each rank evaluates its cases and rank 0 writes; a case that a sampler repeats counts once.

    Args:
        output_dir: folder of the files, created if needed.
        model: settings of the model, with the names of the classes.
        provenance: facts about the run for the page.
    """

    def __init__(self, output_dir: str | os.PathLike, model: ModelSettings, provenance: Provenance) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = model.class_names
        self.provenance = provenance
        self.facts: dict[str, str] = {}
        self.rows: dict[str, list[ClassMetrics]] = {}  # by path of the scan
        self.entropy: dict[str, float] = {}  # by path too
        self.slices: SliceStore  # by path too

    def attach(self, engine: Evaluator) -> None:
        """Report on the cases of `engine`.

        Raises:
            InputError: this process has no case, so that the others would wait for it forever.
        """
        if engine.state.epoch_length == 0:
            raise InputError("there are fewer cases than processes, or none; start at most one process per case")
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._evaluate)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, engine: Evaluator) -> None:
        self.rows, self.entropy = {}, {}
        self.facts = self.provenance.facts() if idist.get_rank() == 0 else {}
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.slices = SliceStore(self.output_dir)

    def _evaluate(self, engine: Evaluator) -> None:
        for item in engine.state.output:
            image, label, pred = item[CommonKeys.IMAGE], item[CommonKeys.LABEL], item[CommonKeys.PRED]
            # file names that are not UTF-8 can be opened, but neither logged nor written
            path = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ]).encode("utf-8", "backslashreplace").decode("utf-8")
            _check(path, image, label, pred)
            spacing = affine_to_spacing(label.affine, label.ndim - 1).tolist()
            rows = case_metrics(pred[0], label[0], len(self.class_names), spacing)
            self.rows[path] = rows
            self.entropy[path] = float(getattr(pred, "meta", {}).get(ENTROPY, np.nan))
            if not np.isnan(mean_dice(rows)):
                self.slices[path] = select_slices(image, label, pred, rows)
            dice = "  ".join(f"{self.class_names[row.class_index]} {row.dice:.3f}" for row in rows)
            logger.info(f"{case_name(path)}  mean Dice {mean_dice(rows):.3f}  ({dice})")

    def _completed(self, engine: Evaluator) -> None:
        rows, by_path = _gather(self.rows), _gather(self.entropy)
        # every rank selects the same cases and provides the slices of those that it has evaluated
        ranked = worst_median_best({path: mean_dice(of_case) for path, of_case in rows.items()})
        slices = _gather({path: self.slices[path] for path in ranked.values() if path in self.slices})
        self.slices.close()
        if idist.get_rank() > 0:
            return
        names = _unique_names(rows)
        entropy = {names[path]: by_path[path] for path in rows}
        shown = [
            RankedCase(rank, names[path], rows[path], slices[path], by_path[path]) for rank, path in ranked.items()
        ]
        cases = {names[path]: rows[path] for path in sorted(rows, key=names.__getitem__)}
        summaries = summarize(cases, self.class_names)
        write_tables(self.output_dir, cases, entropy, self.class_names, summaries)
        logger.info(aligned_summary(summaries))
        if order := order_sentence({name: mean_dice(of_case) for name, of_case in cases.items()}, entropy):
            logger.info(order)
        model = self.provenance.model.as_dict()
        page = report_page(cases, summaries, self.class_names, shown, self.facts, model, order)
        with replacing(self.output_dir / "report.html") as unfinished:
            unfinished.write_text(page, encoding="utf-8")
        logger.info(f"{len(cases)} cases; details in {self.output_dir / 'metrics.csv'} and report.html")


def _gather(own: dict[str, Any]) -> dict[str, Any]:
    # the items of all ranks
    return {path: item for part in cast(Any, idist.all_gather(cast(Any, own))) for path, item in part.items()}


def _check(path: str, image: Any, label: Any, pred: Any) -> None:
    if not isinstance(label, MetaTensor):
        raise InputError(f"the label of '{path}' has no affine (got {type(label).__name__}); load it with LoadImaged")
    for name, volume in (("prediction", pred), ("image", image)):
        if volume.shape != label.shape or len(label) != 1:
            raise InputError(
                f"{name} {list(volume.shape)} and label {list(label.shape)} of '{path}' must be [1, X, Y, Z] on one "
                "grid; take argmax and invert the transforms before the report"
            )


def _unique_names(paths: Iterable[str]) -> dict[str, str]:
    # case names by path; equal ones get as many parent folders as needed, and x.nii beside x.nii.gz the whole path
    names = {path: case_name(path) for path in paths}
    for depth in range(1, max((len(Path(path).parts) for path in names), default=0)):
        counts = Counter(names.values())
        for path, name in names.items():
            if counts[name] > 1:
                names[path] = "/".join((*Path(path).parts[-1 - depth : -1], case_name(path)))
    counts = Counter(names.values())
    return {path: path if counts[name] > 1 else name for path, name in names.items()}
