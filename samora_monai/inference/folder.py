"""Inference over many scans: each process its share, finished ones only once, and broken ones at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
from monai.data import DataLoader

from samora_monai.data.label_files import ORIGIN, SaveLabeld, read_origin
from samora_monai.errors import InputError, user_message
from samora_monai.inference.label_origin import LabelOrigin
from samora_monai.replacing import remove_unfinished


def scans_to_do(
    scans: Sequence[Mapping[str, str]], saver: SaveLabeld, origin: LabelOrigin, share: Sequence[int], resume: bool
) -> list[dict[str, str]]:
    """This process's scans, and what their labels are made of; with `resume` only those that have no such label yet.

    A label counts if it is whole and was made by the same model and settings from the same scan. Prints how many there
    are where there is something to tell, and removes what killed runs have left of this process's labels.

    Args:
        scans: `{"image": path}` for all processes, in the same order in each.
        saver: knows the label file of each scan.
        origin: of this run's labels.
        share: rank of this process and number of processes.
        resume: leave finished scans out.

    Returns:
        `{"image": path, ORIGIN: text}` for each scan to do.
    """
    rank, processes = share
    own = [{"image": scan["image"], ORIGIN: origin.of(scan["image"])} for scan in scans[rank::processes]]
    remove_unfinished({saver.file_of(scan["image"]) for scan in own})
    to_do = [scan for scan in own if read_origin(saver.file_of(scan["image"])) != scan[ORIGIN]]
    finished = len(own) - len(to_do)
    if processes > 1 or finished:
        again = "; they are made again, --resume true would keep them" if finished and not resume else ""
        print(f"rank {rank} of {processes}: {len(own)} scans, {finished} finished before{again}", flush=True)
    return to_do if resume else own


class ReadableScans:
    """The batches of a data loader, without the scans that cannot be read or are not as they should be.

    One of these is reported when it is met, and the run goes on; `end` tells of them all.

    Args:
        dataloader: gives one scan at a time.
    """

    def __init__(self, dataloader: DataLoader) -> None:
        self.dataloader = dataloader
        self.total = len(dataloader)
        self.taken = 0
        self.failed: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.dataloader)
        self.taken, self.failed = 0, []
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # MONAI wraps what a transform raises; a worker of the loader hands over text
                mistake = user_message(error)
                if mistake is None:
                    raise
                self.taken += 1
                self.failed.append(mistake)
                print(f"[{self.taken}/{self.total}] no label: {mistake}", flush=True)
                continue
            if batch is None:
                return
            self.taken += 1
            yield batch

    def end(self) -> None:
        """
        Raises:
            InputError: some scans have no label.
        """
        idist.barrier()
        if self.total == len(self.failed) == 1:
            raise InputError(self.failed[0])
        if self.failed:
            print(f"{len(self.failed)} of {self.total} scans have no label:", *self.failed, sep="\n  ", flush=True)
            raise InputError(
                f"{len(self.failed)} of {self.total} scans have no label, the first: {self.failed[0]}; "
                "mend or remove them and add --resume true to do these alone"
            )
