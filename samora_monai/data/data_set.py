"""A data set that is read on first use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from samora_monai.data.datalist import DEFAULT_DATALIST, Cases, find_cases


@dataclass(eq=False)
class DataSet:
    """The cases of `find_cases`, which takes the same arguments, read on first use.

    The lists of scans in a bundle refer to it. MONAI Label replaces these lists; the data set is then never read, and
    a missing `dataset_dir` is no error.
    """

    dataset_dir: str | os.PathLike
    datalist: str | os.PathLike = DEFAULT_DATALIST
    num_labeled: int | None = None

    @cached_property
    def cases(self) -> Cases:
        """The result of `find_cases`."""
        return find_cases(self.dataset_dir, self.datalist, self.num_labeled)

    @property
    def is_read(self) -> bool:
        """Whether the cases have been used."""
        return "cases" in vars(self)
