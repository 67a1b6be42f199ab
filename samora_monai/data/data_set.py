"""A data set that is read when its cases are first asked for."""

from __future__ import annotations

import os
from functools import cached_property

from samora_monai.data.datalist import DEFAULT_DATALIST, Cases, find_cases


class DataSet:
    """The cases of `find_cases`, read when they are first asked for.

    A bundle's lists of scans refer to it. Where MONAI Label puts lists of its own in their place, nothing asks for the
    data set, and a `dataset_dir` that does not exist is no error.

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
        """The cases, as `find_cases` returns them."""
        return find_cases(self.dataset_dir, self.datalist, self.num_labeled)

    @property
    def is_read(self) -> bool:
        """Whether anything has asked for the cases."""
        return "cases" in vars(self)
