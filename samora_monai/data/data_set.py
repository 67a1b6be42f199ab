"""A data set that is read on first use."""

from __future__ import annotations

import os
from functools import cached_property

from samora_monai.data.datalist import DEFAULT_DATALIST, Cases, find_cases


class DataSet:
    """The cases of `find_cases`, read on first use.

    The lists of scans in a bundle refer to it. Where MONAI Label replaces these lists, the data set is not used, and a
    missing `dataset_dir` is no error.

    Args:
        dataset_dir, datalist, num_labeled: as in `find_cases`.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike,
        datalist: str | os.PathLike = DEFAULT_DATALIST,
        num_labeled: int | None = None,
    ) -> None:
        self.dataset_dir = dataset_dir
        self.datalist = datalist
        self.num_labeled = num_labeled

    @cached_property
    def cases(self) -> Cases:
        """The result of `find_cases`."""
        return find_cases(self.dataset_dir, self.datalist, self.num_labeled)

    @property
    def is_read(self) -> bool:
        """Whether the cases have been used."""
        return "cases" in vars(self)
