"""Next Sample: representative scans, uncertain ones, and a mix that goes from the first to the second.

No failure of the background stops Next Sample: it then hands out a scan at random, and the log says why.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scoring import Background

from samora_monai.errors import one_line
from samora_monai.selection import NextScan, Pool, patients_of

DESCRIPTIONS = {
    "mixed": "representative scans first, uncertain ones when there are labels",
    "representative": "scans that stand for many others, of patients without a label",
    "uncertain": "scans of which the served model is least certain",
}
TAG = "samora"  # of what is written into the information of an image
_UID = re.compile(r"[0-9.]+")  # names of DICOM series tell nothing of the patient

logger = logging.getLogger("samora_strategies")


class Chooser:
    """Choose the next scan by one of `DESCRIPTIONS`.

    Args:
        background: with the features and scores.
        shuffle: chooses one of several scans where nothing is known.
    """

    def __init__(self, background: Background, shuffle: Callable[[list[str]], str] = random.choice) -> None:
        self.background, self.shuffle = background, shuffle
        self._pool = Pool({}, {})

    def __call__(self, strategy: str, datastore: Any) -> str | None:
        """Name of the chosen image, None if all have a label."""
        labelled = [str(image) for image in datastore.get_labeled_images()]
        unlabelled = sorted(str(image) for image in datastore.get_unlabeled_images())
        if not unlabelled:
            return None
        information = {image: datastore.get_image_info(image) for image in {*labelled, *unlabelled}}
        asked = [image for image in unlabelled if _asked_at(information[image])]
        asked.sort(key=lambda image: _asked_at(information[image]))
        try:
            now = self._known(labelled, unlabelled, asked, information)
            reason = ""
            try:
                image = {"mixed": now.mixed, "representative": now.representative, "uncertain": now.uncertain}[
                    strategy
                ]()
            except ValueError as error:  # an InputError: nothing is known yet
                reason, image = one_line(error), self.shuffle(now.candidates)
                if strategy == "mixed" and len(now.pool.names) > 1:
                    image = now.representative()
        except Exception as error:  # whatever fails here, a person waits for a scan
            new = [image for image in unlabelled if image not in asked]
            reason, image = f"{type(error).__name__}: {one_line(error)}", self.shuffle(new or unlabelled)
        if reason:
            logger.warning("next sample: '%s' chose '%s' without a score: %s", strategy, image, reason)
        self._note(image, strategy, datastore)
        return image

    def _known(
        self, labelled: list[str], unlabelled: list[str], asked: list[str], information: Mapping[str, Mapping[str, Any]]
    ) -> NextScan:
        store = self.background.store
        cells, anatomies = store.features(sorted({*labelled, *unlabelled}))
        if self._pool.names != sorted(cells):
            self._pool = Pool(cells, anatomies)
        patients = patients_by_name(information)
        scores = store.scores(self.background.model_key)
        recent = [*asked, *labelled]
        last = max(recent, key=lambda image: _asked_at(information[image]), default=None)
        return NextScan(unlabelled, labelled, patients, asked, last, self._pool, scores)

    def _note(self, image: str, strategy: str, datastore: Any) -> None:
        """Write the score of the chosen image into its information, where a viewer may read it."""
        score = self.background.store.scores(self.background.model_key).get(image)
        try:
            datastore.update_image_info(image, {TAG: {"strategy": strategy, "uncertainty": score}})
        except Exception as error:
            logger.warning("next sample: cannot note the score of '%s': %s", image, one_line(error))


def _asked_at(information: Mapping[str, Any]) -> float:
    """When an image was last handed out, in seconds; 0 for never. MONAI Label notes it."""
    times = [entry.get("ts", 0) for entry in information.get("strategy", {}).values() if isinstance(entry, dict)]
    return max(times, default=0)


def patients_by_name(information: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The patient of each image: DICOM's Patient ID, else by its name; a series UID is a patient of its own."""
    ids = {
        i: str(info["PatientID"]) for i, info in information.items() if info.get("PatientID") not in (None, "", "UNK")
    }
    named = sorted(image for image in information if image not in ids and not _UID.fullmatch(image))
    by_name = dict(zip(named, patients_of([str(Path("/", image)) for image in named], Path("/")), strict=True))
    return {image: f"ID {ids[image]}" if image in ids else by_name.get(image, image) for image in information}
