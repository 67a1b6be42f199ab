"""Inference on a folder of scans: the share of each process, resuming, and scans that cannot be read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from monai.data import DataLoader

from samora_monai import __version__
from samora_monai.checkpoints.files import file_sha256
from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.data.label_files import PROVENANCE, SaveLabeld, read_provenance
from samora_monai.data.scans import fingerprint
from samora_monai.errors import InputError, user_message
from samora_monai.replacing import remove_unfinished
from samora_monai.settings import flag

logger = logging.getLogger(__name__)


class LabelProvenance:
    """What a label was made from, as a text in the header of its file: equal texts mean equal labels.

    A hash of the model file, its settings, the version of this package, and the size and modification time of the scan.

    Args:
        checkpoint: the model file.
        model: settings of the model, as this run uses them.
        amp: whether the network runs under autocast.
        tta: whether it averages over views.
    """

    def __init__(
        self, checkpoint: str | os.PathLike[str], model: ModelSettings, amp: bool | str, tta: bool | str = False
    ) -> None:
        run = [__version__, file_sha256(checkpoint), model.as_dict(), flag(amp, "amp")]
        run += ["tta"] if flag(tta, "tta") else []
        self.run = json.dumps(run, sort_keys=True)

    def of(self, scan: str | os.PathLike[str]) -> str:
        """Return the text, 53 characters, for a volume file or the folder of a DICOM series."""
        return f"samora_monai:{hashlib.sha1(json.dumps([self.run, fingerprint(scan)]).encode()).hexdigest()}"


def scans_to_segment(
    scans: Sequence[Mapping[str, str]],
    saver: SaveLabeld,
    provenance: LabelProvenance,
    share: Sequence[int],
    resume: bool | str,
) -> list[dict[str, str]]:
    """Select the scans of this process; with `resume`, only those without a label of the same provenance.

    Remove the temporary files that killed runs left beside this process's labels.

    Args:
        scans: `{"image": path}` of all processes, in the same order in each.
        saver: transform that writes the label files.
        provenance: of the labels of this run.
        share: rank of this process and number of processes.
        resume: skip scans that have a complete label of the same provenance.

    Returns:
        `{"image": path, PROVENANCE: text}` for each scan.
    """
    resume, (rank, processes) = flag(resume, "resume"), share
    own = [{"image": scan["image"], PROVENANCE: provenance.of(scan["image"])} for scan in scans[rank::processes]]
    remove_unfinished({saver.file_of(scan["image"]) for scan in own})
    unfinished = [scan for scan in own if read_provenance(saver.file_of(scan["image"])) != scan[PROVENANCE]]
    finished = len(own) - len(unfinished)
    if processes > 1 or finished:
        again = "; they are made again, --resume true would keep them" if finished and not resume else ""
        logger.info(f"rank {rank} of {processes}: {len(own)} scans, {finished} finished before{again}")
    return unfinished if resume else own


class ReadableScans:
    """The batches of a data loader, without scans that cannot be read or fail a check.

    Each such scan is logged when it occurs, and the run continues; `end` lists all of them.

    Args:
        dataloader: loads one scan at a time.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataloader = dataloader
        self.total = len(dataloader)
        self.taken = 0
        self.failed: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.dataloader)
        self.taken, self.failed = 0, []
        for _ in range(self.total):
            self.taken += 1
            try:
                batch = next(batches)
            except Exception as error:  # MONAI wraps the errors of transforms; a worker of the loader sends text
                mistake = user_message(error)
                if mistake is None:
                    raise
                self.failed.append(mistake)
                logger.info(f"[{self.taken}/{self.total}] no label: {mistake}")
            else:
                yield batch

    def end(self) -> None:
        """Wait for all processes, then report the scans without a label.

        Raises:
            InputError: some scans have no label.
        """
        idist.barrier()
        if self.total == len(self.failed) == 1:
            raise InputError(self.failed[0])
        if self.failed:
            count = f"{len(self.failed)} of {self.total} scans have no label"
            logger.info("\n  ".join([f"{count}:", *self.failed]))
            remedy = "repair or remove them and add --resume true to segment only these"
            raise InputError(f"{count}, the first: {self.failed[0]}; {remedy}")
